//! Owns the disk of a simulation: SQLite's files in this process's memory, with the locks
//! and the shared log index that its connections need, and what of them was synced.
//!
//! Never: a real file with something in it: system calls are half of the time of a
//! simulation, also on a disk in memory. Empty ones stand where the writer looks whether its
//! files are still there. What SQLite does with real files, and what a disk makes of it when
//! the power fails, is shown by the test `power`.

#![allow(unsafe_code, reason = "SQLite calls its file system through pointers")]

use rusqlite::ffi::{
    SQLITE_BUSY, SQLITE_IOCAP_POWERSAFE_OVERWRITE, SQLITE_IOERR_SHORT_READ, SQLITE_LOCK_EXCLUSIVE,
    SQLITE_LOCK_NONE, SQLITE_LOCK_RESERVED, SQLITE_LOCK_SHARED, SQLITE_NOTFOUND, SQLITE_OK,
    SQLITE_SHM_EXCLUSIVE, SQLITE_SHM_LOCK, SQLITE_SHM_NLOCK, sqlite3_file, sqlite3_int64,
    sqlite3_io_methods, sqlite3_vfs, sqlite3_vfs_find, sqlite3_vfs_register,
};
use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Once};
use tempfile::TempDir;

/// What SQLite maps of a log index at once.
const REGION_BYTES: usize = 32 * 1024;

/// Slots of the log index that connections lock.
const SLOTS: usize = SQLITE_SHM_NLOCK as usize;

/// The files of one world; they go with it.
pub(crate) struct Disk {
    dir: TempDir,
}

impl Disk {
    pub(crate) fn new() -> Disk {
        register();
        let made = tempfile::Builder::new().prefix("roost-simulation-").tempdir_in("/dev/shm");
        Disk { dir: made.or_else(|_| tempfile::tempdir()).unwrap() }
    }

    /// Where a database can be made.
    pub(crate) fn path(&self, number: u32) -> PathBuf {
        let db = self.dir.path().join(format!("{number}.db"));
        for place in [&db, &wal_of(&db)] {
            std::fs::write(place, "").unwrap();
        }
        db
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        FILES.lock().unwrap().retain(|name, _| !Path::new(name).starts_with(self.dir.path()));
    }
}

/// The write-ahead log of a database.
pub(crate) fn wal_of(db: &Path) -> PathBuf {
    let mut name = db.as_os_str().to_owned();
    name.push("-wal");
    PathBuf::from(name)
}

/// How long a file is, and how long it was when it was last synced.
pub(crate) fn length(path: &Path) -> (u64, u64) {
    let file = FILES.lock().unwrap().get(path.to_str().unwrap()).cloned();
    file.map_or((0, 0), |file| {
        let file = file.lock().unwrap();
        (file.bytes.len() as u64, file.synced)
    })
}

/// Makes a file of the first bytes of another, all of it synced.
pub(crate) fn copy(from: &Path, to: &Path, bytes: u64) {
    let mut files = FILES.lock().unwrap();
    let Some(file) = files.get(from.to_str().unwrap()).cloned() else { return };
    let file = file.lock().unwrap();
    let kept = file.bytes.len().min(usize::try_from(bytes).unwrap_or(usize::MAX));
    let bytes = file.bytes[..kept].to_vec();
    let copy = Content { synced: kept as u64, bytes, ..Content::default() };
    files.insert(to.to_str().unwrap().to_owned(), Arc::new(Mutex::new(copy)));
}

static FILES: Mutex<BTreeMap<String, Arc<Mutex<Content>>>> = Mutex::new(BTreeMap::new());

/// One file, and what connections share that have it open.
#[derive(Default)]
struct Content {
    bytes: Vec<u8>,
    synced: u64,
    readers: u32,
    reserved: bool,
    exclusive: bool,
    /// The log index of a database.
    regions: Vec<Box<[u64; REGION_BYTES / 8]>>,
    mapped: u32,
    slots: [Slot; SLOTS],
}

#[derive(Clone, Copy, Default)]
struct Slot {
    shared: u32,
    exclusive: bool,
}

/// One file as one connection has it open.
struct Handle {
    file: Arc<Mutex<Content>>,
    level: c_int,
    maps: bool,
    shared: u32,
    exclusive: u32,
}

/// A file in memory that SQLite gave.
#[repr(C)]
struct File {
    base: sqlite3_file,
    handle: *mut Handle,
}

fn register() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: the usual one is registered for good, and so is ours, which is leaked.
        unsafe {
            let mut ours = *sqlite3_vfs_find(std::ptr::null());
            ours.szOsFile = size_of::<File>() as c_int;
            ours.zName = c"simulated".as_ptr();
            ours.pNext = std::ptr::null_mut();
            ours.xOpen = Some(open);
            ours.xDelete = Some(delete);
            ours.xAccess = Some(access);
            ours.xFullPathname = Some(full_path);
            let ours = Box::leak(Box::new(ours));
            assert_eq!(sqlite3_vfs_register(ours, 1), SQLITE_OK);
        }
    });
}

unsafe fn name_of(name: *const c_char) -> Option<String> {
    // SAFETY: SQLite gives a string, or none for a temporary file.
    unsafe { (!name.is_null()).then(|| CStr::from_ptr(name).to_str().unwrap().to_owned()) }
}

unsafe extern "C" fn open(
    _: *mut sqlite3_vfs,
    name: *const c_char,
    file: *mut sqlite3_file,
    flags: c_int,
    out: *mut c_int,
) -> c_int {
    // SAFETY: SQLite gives as much memory as `szOsFile` says.
    unsafe {
        let content = match name_of(name) {
            Some(name) => Arc::clone(FILES.lock().unwrap().entry(name).or_default()),
            None => Arc::default(),
        };
        let level = SQLITE_LOCK_NONE;
        let handle = Handle { file: content, level, maps: false, shared: 0, exclusive: 0 };
        let ours: *mut File = file.cast();
        (*ours).handle = Box::into_raw(Box::new(handle));
        (*ours).base.pMethods = &raw const METHODS;
        if !out.is_null() {
            *out = flags;
        }
    }
    SQLITE_OK
}

unsafe extern "C" fn delete(_: *mut sqlite3_vfs, name: *const c_char, _: c_int) -> c_int {
    // SAFETY: SQLite gives a string.
    if let Some(name) = unsafe { name_of(name) } {
        FILES.lock().unwrap().remove(&name);
    }
    SQLITE_OK
}

unsafe extern "C" fn access(
    _: *mut sqlite3_vfs,
    name: *const c_char,
    _: c_int,
    out: *mut c_int,
) -> c_int {
    // SAFETY: SQLite gives a string and a place for the answer.
    unsafe {
        let there = name_of(name).is_some_and(|name| FILES.lock().unwrap().contains_key(&name));
        *out = c_int::from(there);
    }
    SQLITE_OK
}

unsafe extern "C" fn full_path(
    _: *mut sqlite3_vfs,
    name: *const c_char,
    bytes: c_int,
    out: *mut c_char,
) -> c_int {
    // SAFETY: SQLite gives a string, and room for so many bytes; our names are short.
    unsafe {
        let name = CStr::from_ptr(name).to_bytes_with_nul();
        assert!(name.len() <= bytes as usize);
        std::ptr::copy_nonoverlapping(name.as_ptr().cast(), out, name.len());
    }
    SQLITE_OK
}

unsafe fn handle<'a>(file: *mut sqlite3_file) -> &'a mut Handle {
    // SAFETY: made by `open`, freed by `close`; one connection uses it, one call at a time.
    unsafe { &mut *(*file.cast::<File>()).handle }
}

unsafe extern "C" fn close(file: *mut sqlite3_file) -> c_int {
    // SAFETY: the last call for this file; what `open` made is freed.
    unsafe {
        handle(file).release(SQLITE_LOCK_NONE);
        handle(file).unmap();
        drop(Box::from_raw((*file.cast::<File>()).handle));
    }
    SQLITE_OK
}

unsafe extern "C" fn read(
    file: *mut sqlite3_file,
    to: *mut c_void,
    bytes: c_int,
    at: sqlite3_int64,
) -> c_int {
    // SAFETY: SQLite gives room for so many bytes.
    unsafe {
        let content = handle(file).file.lock().unwrap();
        let to = std::slice::from_raw_parts_mut(to.cast::<u8>(), bytes as usize);
        let from = content.bytes.get(at as usize..).unwrap_or_default();
        let there = from.len().min(to.len());
        to[..there].copy_from_slice(&from[..there]);
        to[there..].fill(0);
        if there < to.len() { SQLITE_IOERR_SHORT_READ } else { SQLITE_OK }
    }
}

unsafe extern "C" fn write(
    file: *mut sqlite3_file,
    from: *const c_void,
    bytes: c_int,
    at: sqlite3_int64,
) -> c_int {
    // SAFETY: SQLite gives that many bytes.
    unsafe {
        let content = &mut handle(file).file.lock().unwrap().bytes;
        let from = std::slice::from_raw_parts(from.cast::<u8>(), bytes as usize);
        let (at, end) = (at as usize, at as usize + from.len());
        if at == content.len() {
            content.extend_from_slice(from);
        } else {
            content.resize(content.len().max(end), 0);
            content[at..end].copy_from_slice(from);
        }
    }
    SQLITE_OK
}

unsafe extern "C" fn truncate(file: *mut sqlite3_file, bytes: sqlite3_int64) -> c_int {
    // SAFETY: as above.
    let mut content = unsafe { handle(file) }.file.lock().unwrap();
    content.bytes.truncate(bytes as usize);
    content.synced = content.synced.min(bytes as u64);
    SQLITE_OK
}

unsafe extern "C" fn sync(file: *mut sqlite3_file, _: c_int) -> c_int {
    // SAFETY: as above.
    let mut content = unsafe { handle(file) }.file.lock().unwrap();
    content.synced = content.bytes.len() as u64;
    SQLITE_OK
}

unsafe extern "C" fn file_size(file: *mut sqlite3_file, out: *mut sqlite3_int64) -> c_int {
    // SAFETY: SQLite gives a place for the answer.
    unsafe { *out = handle(file).file.lock().unwrap().bytes.len() as sqlite3_int64 };
    SQLITE_OK
}

unsafe extern "C" fn lock(file: *mut sqlite3_file, level: c_int) -> c_int {
    // SAFETY: as above.
    unsafe { handle(file) }.take(level)
}

unsafe extern "C" fn unlock(file: *mut sqlite3_file, level: c_int) -> c_int {
    // SAFETY: as above.
    unsafe { handle(file) }.release(level);
    SQLITE_OK
}

unsafe extern "C" fn check_reserved(file: *mut sqlite3_file, out: *mut c_int) -> c_int {
    // SAFETY: SQLite gives a place for the answer.
    unsafe { *out = c_int::from(handle(file).file.lock().unwrap().reserved) };
    SQLITE_OK
}

unsafe extern "C" fn control(_: *mut sqlite3_file, _: c_int, _: *mut c_void) -> c_int {
    SQLITE_NOTFOUND
}

unsafe extern "C" fn sector_size(_: *mut sqlite3_file) -> c_int {
    4096
}

unsafe extern "C" fn characteristics(_: *mut sqlite3_file) -> c_int {
    SQLITE_IOCAP_POWERSAFE_OVERWRITE
}

unsafe extern "C" fn shm_map(
    file: *mut sqlite3_file,
    region: c_int,
    bytes: c_int,
    extend: c_int,
    out: *mut *mut c_void,
) -> c_int {
    assert_eq!(bytes as usize, REGION_BYTES);
    // SAFETY: regions are boxed and stay where they are while somebody maps them.
    unsafe {
        let handle = handle(file);
        let mut content = handle.file.lock().unwrap();
        content.mapped += u32::from(!handle.maps);
        handle.maps = true;
        while extend != 0 && content.regions.len() <= region as usize {
            content.regions.push(Box::new([0; REGION_BYTES / 8]));
        }
        let region = content.regions.get_mut(region as usize);
        *out = region.map_or(std::ptr::null_mut(), |region| region.as_mut_ptr().cast());
    }
    SQLITE_OK
}

unsafe extern "C" fn shm_lock(
    file: *mut sqlite3_file,
    at: c_int,
    count: c_int,
    flags: c_int,
) -> c_int {
    // SAFETY: as above.
    let handle = unsafe { handle(file) };
    let exclusive = flags & SQLITE_SHM_EXCLUSIVE != 0;
    let slots = at as usize..(at + count) as usize;
    match flags & SQLITE_SHM_LOCK != 0 {
        true => handle.take_slots(slots, exclusive),
        false => handle.release_slots(slots),
    }
}

unsafe extern "C" fn shm_barrier(_: *mut sqlite3_file) {}

unsafe extern "C" fn shm_unmap(file: *mut sqlite3_file, _: c_int) -> c_int {
    // SAFETY: as above.
    unsafe { handle(file) }.unmap();
    SQLITE_OK
}

impl Handle {
    fn take(&mut self, level: c_int) -> c_int {
        let mut file = self.file.lock().unwrap();
        let ours = u32::from(self.level >= SQLITE_LOCK_SHARED);
        let busy = match level {
            SQLITE_LOCK_SHARED => file.exclusive,
            SQLITE_LOCK_RESERVED => file.reserved && self.level < SQLITE_LOCK_RESERVED,
            _ => file.readers > ours || file.reserved && self.level < SQLITE_LOCK_RESERVED,
        };
        if level <= self.level {
            return SQLITE_OK;
        }
        if busy {
            return SQLITE_BUSY;
        }
        file.readers += 1 - ours;
        file.reserved |= level >= SQLITE_LOCK_RESERVED;
        file.exclusive |= level >= SQLITE_LOCK_EXCLUSIVE;
        self.level = level;
        SQLITE_OK
    }

    fn release(&mut self, level: c_int) {
        if level >= self.level {
            return;
        }
        let mut file = self.file.lock().unwrap();
        if self.level >= SQLITE_LOCK_RESERVED {
            (file.reserved, file.exclusive) = (false, false);
        }
        if level == SQLITE_LOCK_NONE {
            file.readers -= 1;
        }
        self.level = level;
    }

    fn take_slots(&mut self, slots: std::ops::Range<usize>, exclusive: bool) -> c_int {
        let mut file = self.file.lock().unwrap();
        let busy = |at: usize| {
            let slot = file.slots[at];
            let shared = slot.shared - (self.shared >> at & 1);
            slot.exclusive && self.exclusive >> at & 1 == 0 || exclusive && shared > 0
        };
        if slots.clone().any(busy) {
            return SQLITE_BUSY;
        }
        for at in slots {
            if exclusive {
                file.slots[at].exclusive = true;
                self.exclusive |= 1 << at;
            } else {
                file.slots[at].shared += 1 - (self.shared >> at & 1);
                self.shared |= 1 << at;
            }
        }
        SQLITE_OK
    }

    fn release_slots(&mut self, slots: std::ops::Range<usize>) -> c_int {
        let mut file = self.file.lock().unwrap();
        for at in slots {
            file.slots[at].shared -= self.shared >> at & 1;
            file.slots[at].exclusive &= self.exclusive >> at & 1 == 0;
            self.shared &= !(1 << at);
            self.exclusive &= !(1 << at);
        }
        SQLITE_OK
    }

    /// With the last connection the log index goes: the next one makes it anew.
    fn unmap(&mut self) {
        if !std::mem::take(&mut self.maps) {
            return;
        }
        self.release_slots(0..SLOTS);
        let mut file = self.file.lock().unwrap();
        file.mapped -= 1;
        if file.mapped == 0 {
            file.regions.clear();
        }
    }
}

static METHODS: sqlite3_io_methods = sqlite3_io_methods {
    iVersion: 2,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(file_size),
    xLock: Some(lock),
    xUnlock: Some(unlock),
    xCheckReservedLock: Some(check_reserved),
    xFileControl: Some(control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(characteristics),
    xShmMap: Some(shm_map),
    xShmLock: Some(shm_lock),
    xShmBarrier: Some(shm_barrier),
    xShmUnmap: Some(shm_unmap),
    xFetch: None,
    xUnfetch: None,
};
