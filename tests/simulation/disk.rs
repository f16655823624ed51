//! Owns the disk of a simulation: SQLite's files in this process's memory, with the locks
//! and the shared log index that its connections need, and what of them was synced.
//!
//! Never: a real file with something in it: system calls are half of the time of a
//! simulation, also on a disk in memory. Empty ones stand where the writer looks whether its
//! files are still there. What SQLite does with real files, and what a disk makes of it when
//! the power fails, is shown by the test `power`. And a lock between threads: a world and its
//! files live and end on one.

#![allow(unsafe_code, reason = "SQLite calls its file system through pointers")]

use rusqlite::ffi::{
    SQLITE_BUSY, SQLITE_IOCAP_POWERSAFE_OVERWRITE, SQLITE_IOERR_SHORT_READ, SQLITE_LOCK_EXCLUSIVE,
    SQLITE_LOCK_NONE, SQLITE_LOCK_RESERVED, SQLITE_LOCK_SHARED, SQLITE_NOTFOUND, SQLITE_OK,
    SQLITE_SHM_EXCLUSIVE, SQLITE_SHM_LOCK, SQLITE_SHM_NLOCK, sqlite3_file, sqlite3_int64,
    sqlite3_io_methods, sqlite3_vfs, sqlite3_vfs_find, sqlite3_vfs_register,
};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Once;
use tempfile::TempDir;

/// What SQLite maps of a log index at once.
const REGION_BYTES: usize = 32 * 1024;

/// Slots of the log index that connections lock.
const SLOTS: usize = SQLITE_SHM_NLOCK as usize;

/// Files are made of pieces of that size. Larger: short files waste memory; smaller: more
/// writes fall on two of them.
const PIECE_BYTES: usize = 32 * 1024;

/// So many pieces of files that are gone wait for others: 64 MiB for each thread. More:
/// memory that nobody uses stays; fewer: every log fetches its memory from the kernel.
const SPARE_MAX: usize = 2048;

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
        let ours = |name: &String| Path::new(name).starts_with(self.dir.path());
        FILES.with_borrow_mut(|files| files.retain(|name, _| !ours(name)));
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
    file_at(path).map_or((0, 0), |file| {
        let file = file.borrow();
        (file.bytes.len() as u64, file.synced)
    })
}

/// Makes a file of the first bytes of another, all of it synced.
pub(crate) fn copy(from: &Path, to: &Path, bytes: u64) {
    let Some(file) = file_at(from) else { return };
    let bytes = file.borrow().bytes.first(usize::try_from(bytes).unwrap_or(usize::MAX));
    let copy = Content { synced: bytes.len() as u64, bytes, ..Content::default() };
    let copy = Rc::new(RefCell::new(copy));
    FILES.with_borrow_mut(|files| files.insert(to.to_str().unwrap().to_owned(), copy));
}

fn file_at(path: &Path) -> Option<Shared> {
    FILES.with_borrow(|files| files.get(path.to_str().unwrap()).cloned())
}

type Shared = Rc<RefCell<Content>>;

thread_local! {
    static FILES: RefCell<BTreeMap<String, Shared>> = const { RefCell::new(BTreeMap::new()) };
    static SPARE: RefCell<Vec<Piece>> = const { RefCell::new(Vec::new()) };
}

type Piece = Box<[u8; PIECE_BYTES]>;

/// What is in a file. Pieces go from one file to the next, and are never moved.
#[derive(Default)]
struct Bytes {
    pieces: Vec<Piece>,
    len: usize,
}

impl Bytes {
    fn len(&self) -> usize {
        self.len
    }

    /// Gives how many there are from there on, at most as many as fit.
    fn read(&self, at: usize, to: &mut [u8]) -> usize {
        let there = self.len.saturating_sub(at).min(to.len());
        let (mut at, mut to) = (at, &mut to[..there]);
        while !to.is_empty() {
            let piece = &self.pieces[at / PIECE_BYTES][at % PIECE_BYTES..];
            let (now, rest) = to.split_at_mut(piece.len().min(to.len()));
            now.copy_from_slice(&piece[..now.len()]);
            (at, to) = (at + now.len(), rest);
        }
        there
    }

    fn write(&mut self, at: usize, from: &[u8]) {
        // What was in its pieces before is no content of this file.
        const ZEROS: &[u8] = &[0; 4096];
        while self.len < at {
            let gap = (at - self.len).min(ZEROS.len());
            self.put(self.len, &ZEROS[..gap]);
        }
        self.put(at, from);
    }

    fn put(&mut self, mut at: usize, mut from: &[u8]) {
        while !from.is_empty() {
            let which = at / PIECE_BYTES;
            if which == self.pieces.len() {
                let spare = SPARE.with_borrow_mut(Vec::pop);
                self.pieces.push(spare.unwrap_or_else(|| Box::new([0; PIECE_BYTES])));
            }
            let piece = &mut self.pieces[which][at % PIECE_BYTES..];
            let (now, rest) = from.split_at(piece.len().min(from.len()));
            piece[..now.len()].copy_from_slice(now);
            (at, from) = (at + now.len(), rest);
            self.len = self.len.max(at);
        }
    }

    fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        let gone = self.pieces.drain(self.len.div_ceil(PIECE_BYTES)..);
        // At the end of a thread there is nobody to keep them for.
        let _ = SPARE.try_with(|spare| {
            let mut spare = spare.borrow_mut();
            let room = SPARE_MAX - spare.len();
            spare.extend(gone.take(room));
        });
    }

    fn first(&self, bytes: usize) -> Bytes {
        let mut copy = Bytes::default();
        for piece in &self.pieces {
            let rest = self.len.min(bytes) - copy.len;
            copy.put(copy.len, &piece[..rest.min(PIECE_BYTES)]);
        }
        copy
    }
}

impl Drop for Bytes {
    fn drop(&mut self) {
        self.truncate(0);
    }
}

/// One file, and what connections share that have it open.
#[derive(Default)]
struct Content {
    bytes: Bytes,
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
    file: Shared,
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
            Some(name) => FILES.with_borrow_mut(|files| Rc::clone(files.entry(name).or_default())),
            None => Rc::default(),
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
        FILES.with_borrow_mut(|files| files.remove(&name));
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
        let there = |name| FILES.with_borrow(|files| files.contains_key(&name));
        let there = name_of(name).is_some_and(there);
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
        let content = handle(file).file.borrow();
        let to = std::slice::from_raw_parts_mut(to.cast::<u8>(), bytes as usize);
        let there = content.bytes.read(at as usize, to);
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
        let from = std::slice::from_raw_parts(from.cast::<u8>(), bytes as usize);
        handle(file).file.borrow_mut().bytes.write(at as usize, from);
    }
    SQLITE_OK
}

unsafe extern "C" fn truncate(file: *mut sqlite3_file, bytes: sqlite3_int64) -> c_int {
    // SAFETY: as above.
    let mut content = unsafe { handle(file) }.file.borrow_mut();
    content.bytes.truncate(bytes as usize);
    content.synced = content.synced.min(bytes as u64);
    SQLITE_OK
}

unsafe extern "C" fn sync(file: *mut sqlite3_file, _: c_int) -> c_int {
    // SAFETY: as above.
    let mut content = unsafe { handle(file) }.file.borrow_mut();
    content.synced = content.bytes.len() as u64;
    SQLITE_OK
}

unsafe extern "C" fn file_size(file: *mut sqlite3_file, out: *mut sqlite3_int64) -> c_int {
    // SAFETY: SQLite gives a place for the answer.
    unsafe { *out = handle(file).file.borrow().bytes.len() as sqlite3_int64 };
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
    unsafe { *out = c_int::from(handle(file).file.borrow().reserved) };
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
        let mut content = handle.file.borrow_mut();
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
        let mut file = self.file.borrow_mut();
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
        let mut file = self.file.borrow_mut();
        if self.level >= SQLITE_LOCK_RESERVED {
            (file.reserved, file.exclusive) = (false, false);
        }
        if level == SQLITE_LOCK_NONE {
            file.readers -= 1;
        }
        self.level = level;
    }

    fn take_slots(&mut self, slots: std::ops::Range<usize>, exclusive: bool) -> c_int {
        let mut file = self.file.borrow_mut();
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
        let mut file = self.file.borrow_mut();
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
        let mut file = self.file.borrow_mut();
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
