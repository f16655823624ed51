//! Owns a shim between SQLite and the files of this process: everything passes through to
//! the usual one; of watched directories it keeps a tape of what was written and synced in
//! which order, and makes calls fail on request.
//!
//! Never: changes what is written. Beside the simulation's disk this is the only test that
//! has foreign functions: what the database does with its files cannot be seen in any other
//! safe way, and a file system that loses writes would need more privileges than a test has.

#![allow(unsafe_code, reason = "SQLite calls its file system through pointers")]
#![allow(unreachable_pub, reason = "a part of one test")]

use rusqlite::ffi::{
    SQLITE_OK, SQLITE_OPEN_CREATE, sqlite3_file, sqlite3_int64, sqlite3_io_methods, sqlite3_vfs,
    sqlite3_vfs_find, sqlite3_vfs_register,
};
use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Once};

/// One thing that happened to a file, which goes by its name.
#[derive(Debug, Clone)]
pub enum Op {
    Created(String),
    Wrote(String, u64, Vec<u8>),
    Truncated(String, u64),
    Synced(String),
    /// With its directory, or not.
    Deleted(String, bool),
    /// The test says how far it is.
    Mark(usize),
}

/// Calls that fail: after so many that change something, so many, with this code.
#[derive(Debug, Clone, Copy)]
pub struct Trouble {
    pub after: usize,
    pub times: usize,
    pub code: c_int,
}

#[derive(Debug, Default)]
struct Inner {
    ops: Vec<Op>,
    trouble: Option<Trouble>,
}

/// What happened in one directory.
#[derive(Debug, Clone, Default)]
pub struct Tape(Arc<Mutex<Inner>>);

impl Tape {
    /// Watches a directory from now on.
    pub fn watch(dir: &Path) -> Tape {
        register();
        let tape = Tape::default();
        WATCHED.lock().unwrap().push((dir.to_owned(), tape.clone()));
        tape
    }

    pub fn mark(&self, place: usize) {
        self.0.lock().unwrap().ops.push(Op::Mark(place));
    }

    pub fn trouble(&self, trouble: Option<Trouble>) {
        self.0.lock().unwrap().trouble = trouble;
    }

    /// Ends the watch.
    pub fn finish(self) -> Vec<Op> {
        WATCHED.lock().unwrap().retain(|(_, tape)| !Arc::ptr_eq(&tape.0, &self.0));
        std::mem::take(&mut self.0.lock().unwrap().ops)
    }

    fn note(&self, op: Op) {
        self.0.lock().unwrap().ops.push(op);
    }

    /// The code that the next call that changes something must fail with.
    fn fails(&self) -> Option<c_int> {
        let trouble = &mut self.0.lock().unwrap().trouble;
        let now = trouble.as_mut()?;
        if now.after > 0 {
            now.after -= 1;
            return None;
        }
        now.times = now.times.checked_sub(1)?;
        Some(now.code)
    }
}

static WATCHED: Mutex<Vec<(PathBuf, Tape)>> = Mutex::new(Vec::new());

fn tape_of(path: &Path) -> Option<Tape> {
    let dir = path.parent()?;
    let watched = WATCHED.lock().unwrap();
    watched.iter().find(|(of, _)| of == dir).map(|(_, tape)| tape.clone())
}

/// A file of ours in memory that SQLite gave; the usual one's follows it.
#[repr(C)]
struct File {
    base: sqlite3_file,
    watch: *mut Watch,
}

struct Watch {
    tape: Tape,
    name: String,
}

fn register() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: the usual one is registered for good, and so is ours, which is leaked.
        unsafe {
            let usual = sqlite3_vfs_find(std::ptr::null());
            let mut ours = *usual;
            ours.szOsFile += size_of::<File>() as c_int;
            ours.zName = c"watched".as_ptr();
            ours.pNext = std::ptr::null_mut();
            ours.pAppData = usual.cast();
            ours.xOpen = Some(open);
            ours.xDelete = Some(delete);
            let ours = Box::leak(Box::new(ours));
            assert_eq!(sqlite3_vfs_register(ours, 1), SQLITE_OK);
        }
    });
}

/// The usual one behind ours.
unsafe fn usual(vfs: *mut sqlite3_vfs) -> *mut sqlite3_vfs {
    // SAFETY: `register` put it there.
    unsafe { (*vfs).pAppData.cast() }
}

unsafe fn path_of(name: *const c_char) -> Option<PathBuf> {
    // SAFETY: SQLite gives a string, or none for a temporary file.
    let name = unsafe { (!name.is_null()).then(|| CStr::from_ptr(name))? };
    Some(PathBuf::from(name.to_str().unwrap()))
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap().to_str().unwrap().to_owned()
}

unsafe extern "C" fn open(
    vfs: *mut sqlite3_vfs,
    name: *const c_char,
    file: *mut sqlite3_file,
    flags: c_int,
    out: *mut c_int,
) -> c_int {
    // SAFETY: SQLite gives as much memory as `szOsFile` says: ours and the usual one's.
    unsafe {
        let ours: *mut File = file.cast();
        (*ours).base.pMethods = std::ptr::null();
        let path = path_of(name);
        let existed = path.as_ref().is_some_and(|path| path.exists());
        let usual = usual(vfs);
        let code = ((*usual).xOpen.unwrap())(usual, name, real(file), flags, out);
        if (*real(file)).pMethods.is_null() {
            return code;
        }
        let watch = path.and_then(|path| {
            let tape = tape_of(&path)?;
            if !existed && flags & SQLITE_OPEN_CREATE != 0 {
                tape.note(Op::Created(name_of(&path)));
            }
            Some(Watch { tape, name: name_of(&path) })
        });
        (*ours).watch = watch.map_or(std::ptr::null_mut(), |watch| Box::into_raw(Box::new(watch)));
        (*ours).base.pMethods = &raw const METHODS;
        code
    }
}

unsafe extern "C" fn delete(vfs: *mut sqlite3_vfs, name: *const c_char, sync: c_int) -> c_int {
    // SAFETY: passes on what SQLite gave.
    unsafe {
        let usual = usual(vfs);
        let code = ((*usual).xDelete.unwrap())(usual, name, sync);
        if let Some(path) = path_of(name).filter(|_| code == SQLITE_OK)
            && let Some(tape) = tape_of(&path)
        {
            tape.note(Op::Deleted(name_of(&path), sync != 0));
        }
        code
    }
}

/// The usual one's file behind ours.
unsafe fn real(file: *mut sqlite3_file) -> *mut sqlite3_file {
    // SAFETY: it lies in the same memory.
    unsafe { file.cast::<File>().add(1).cast() }
}

unsafe fn watch<'a>(file: *mut sqlite3_file) -> Option<&'a Watch> {
    // SAFETY: made by `open`, freed by `close`, after which SQLite does not use the file.
    unsafe { (*file.cast::<File>()).watch.as_ref() }
}

/// Methods that only pass on.
macro_rules! pass {
    ($($name:ident => $method:ident($($arg:ident: $type:ty),*) -> $out:ty;)*) => {
        $(unsafe extern "C" fn $name(file: *mut sqlite3_file, $($arg: $type),*) -> $out {
            // SAFETY: passes on what SQLite gave to the file that it belongs to.
            unsafe {
                let real = real(file);
                ((*(*real).pMethods).$method.unwrap())(real, $($arg),*)
            }
        })*
    };
}

pass! {
    read => xRead(to: *mut c_void, bytes: c_int, at: sqlite3_int64) -> c_int;
    pass_write => xWrite(from: *const c_void, bytes: c_int, at: sqlite3_int64) -> c_int;
    pass_truncate => xTruncate(bytes: sqlite3_int64) -> c_int;
    pass_sync => xSync(flags: c_int) -> c_int;
    pass_close => xClose() -> c_int;
    file_size => xFileSize(bytes: *mut sqlite3_int64) -> c_int;
    lock => xLock(level: c_int) -> c_int;
    unlock => xUnlock(level: c_int) -> c_int;
    check_reserved => xCheckReservedLock(out: *mut c_int) -> c_int;
    control => xFileControl(op: c_int, arg: *mut c_void) -> c_int;
    sector_size => xSectorSize() -> c_int;
    characteristics => xDeviceCharacteristics() -> c_int;
    shm_map => xShmMap(page: c_int, bytes: c_int, extend: c_int, out: *mut *mut c_void) -> c_int;
    shm_lock => xShmLock(at: c_int, count: c_int, flags: c_int) -> c_int;
    shm_barrier => xShmBarrier() -> ();
    shm_unmap => xShmUnmap(delete: c_int) -> c_int;
}

unsafe extern "C" fn close(file: *mut sqlite3_file) -> c_int {
    // SAFETY: the last call for this file; what `open` made is freed.
    unsafe {
        let watch = (*file.cast::<File>()).watch;
        if !watch.is_null() {
            drop(Box::from_raw(watch));
        }
        pass_close(file)
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
        if let Some(code) = watch(file).and_then(|watch| watch.tape.fails()) {
            return code;
        }
        let code = pass_write(file, from, bytes, at);
        if let Some(Watch { tape, name }) = watch(file).filter(|_| code == SQLITE_OK) {
            let bytes = std::slice::from_raw_parts(from.cast::<u8>(), bytes as usize);
            tape.note(Op::Wrote(name.clone(), at as u64, bytes.to_vec()));
        }
        code
    }
}

unsafe extern "C" fn truncate(file: *mut sqlite3_file, bytes: sqlite3_int64) -> c_int {
    // SAFETY: as above.
    unsafe {
        if let Some(code) = watch(file).and_then(|watch| watch.tape.fails()) {
            return code;
        }
        let code = pass_truncate(file, bytes);
        if let Some(Watch { tape, name }) = watch(file).filter(|_| code == SQLITE_OK) {
            tape.note(Op::Truncated(name.clone(), bytes as u64));
        }
        code
    }
}

unsafe extern "C" fn sync(file: *mut sqlite3_file, flags: c_int) -> c_int {
    // SAFETY: as above. The real sync is left out: this process is not what ends.
    unsafe {
        let Some(Watch { tape, name }) = watch(file) else { return pass_sync(file, flags) };
        if let Some(code) = tape.fails() {
            return code;
        }
        tape.note(Op::Synced(name.clone()));
        SQLITE_OK
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
