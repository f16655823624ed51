//! Owns how files of ours come to be: new, for their owner only, in no place that a link
//! leads to; and where a path leads.
//!
//! Never: writes through a link or over what has its name already, knows what is in a file.
//! Used by every room that keeps a file in the data directory.

use rustix::fs::{Mode, OFlags, fchmod, open};
use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, fchown};
use std::path::{Path, PathBuf};

/// Links that are followed one after the other. Larger: a circle takes longer to be found;
/// smaller than what the system follows (40): a path that it opens is refused.
const LINKS_MAX: usize = 40;

/// What every file of ours is opened with: no link is followed, a pipe makes no one wait.
fn flags() -> OFlags {
    OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC
}

/// Makes a file that is not there yet, for its owner only.
///
/// # Errors
/// `AlreadyExists` when anything has the name, also a link that leads nowhere.
pub fn create_new(path: &Path) -> io::Result<File> {
    let made = open(path, flags() | OFlags::RDWR | OFlags::CREATE | OFlags::EXCL, owner_only())?;
    let file = File::from(made);
    // Whatever the umask says.
    fchmod(&file, owner_only())?;
    give_to_owner_of_dir(&file, path)?;
    Ok(file)
}

/// Opens the file for writing, or makes it. True: it was made.
///
/// # Errors
/// Whatever the system says; a link, or anything else that is no plain file, is refused.
pub fn open_or_create(path: &Path) -> io::Result<(File, bool)> {
    match create_new(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        made => return made.map(|file| (file, true)),
    }
    let file = open_plain(path, OFlags::RDWR)?;
    // A user who may read it may lock it. One that is another user's is not ours to change.
    let _ = fchmod(&file, owner_only());
    Ok((file, false))
}

/// Opens a file for reading.
///
/// # Errors
/// As [`open_or_create`].
pub fn open_for_reading(path: &Path) -> io::Result<File> {
    open_plain(path, OFlags::RDONLY)
}

fn open_plain(path: &Path, access: OFlags) -> io::Result<File> {
    let file = match open(path, flags() | access, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(rustix::io::Errno::LOOP) => return Err(not_plain("is a link")),
        Err(error) => return Err(error.into()),
    };
    if !file.metadata()?.is_file() {
        return Err(not_plain("is no plain file"));
    }
    Ok(file)
}

fn not_plain(what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidInput, format!("{what}; remove it"))
}

fn owner_only() -> Mode {
    Mode::RUSR | Mode::WUSR
}

/// Makes the file `name` with this text. It is written as `part` first: a crash leaves a
/// whole file or none, and a power cut does not take one back that was used.
///
/// # Errors
/// Whatever the system says; then nothing has changed but, perhaps, `part`.
pub fn write_whole(name: &Path, part: &Path, text: &str) -> io::Result<()> {
    write_part(part, text)?;
    std::fs::rename(part, name)?;
    sync_dir_of(name)
}

/// Makes the file `part` and brings it to the disk, in the place of what an earlier attempt
/// left there.
///
/// # Errors
/// Whatever the system says.
pub fn write_part(part: &Path, text: &str) -> io::Result<()> {
    match std::fs::remove_file(part) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file = create_new(part)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// Brings the names in the directory of `path` to the disk.
///
/// # Errors
/// Whatever the system says.
pub fn sync_dir_of(path: &Path) -> io::Result<()> {
    File::open(dir_of(path))?.sync_all()
}

/// The directory that a path is in.
pub fn dir_of(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Root works for a service that runs as another user: what lies in a directory belongs to
/// whom the directory does.
fn give_to_owner_of_dir(file: &File, path: &Path) -> io::Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let (dir, found) = (dir_of(path).metadata()?, file.metadata()?);
    if (dir.uid(), dir.gid()) == (found.uid(), found.gid()) {
        return Ok(());
    }
    fchown(file, Some(dir.uid()), Some(dir.gid()))
}

/// Which file a path leads to, whatever links are on the way; it need not be there.
///
/// # Errors
/// Links that go round in a circle, a directory that may not be entered.
pub fn resolved(path: &Path) -> io::Result<PathBuf> {
    let mut at = std::path::absolute(path)?;
    for _ in 0..LINKS_MAX {
        let Some(name) = at.file_name() else { return Ok(at) };
        let dir = match dir_of(&at).canonicalize() {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(at),
            dir => dir?,
        };
        let file = dir.join(name);
        match std::fs::read_link(&file) {
            Ok(to) => at = dir.join(to),
            Err(_) => return Ok(file),
        }
    }
    Err(rustix::io::Errno::LOOP.into())
}

/// The text without the mark that some editors put at its beginning.
pub fn without_mark(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn mode(path: &Path) -> u32 {
        path.symlink_metadata().unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn nothing_is_written_where_a_link_leads() {
        let dir = tempfile::tempdir().unwrap();
        let (link, victim) = (dir.path().join("link"), dir.path().join("victim"));
        std::fs::write(&victim, "precious").unwrap();
        for to in [victim.clone(), dir.path().join("nowhere")] {
            symlink(&to, &link).unwrap();
            assert_eq!(create_new(&link).unwrap_err().kind(), ErrorKind::AlreadyExists);
            assert!(open_or_create(&link).unwrap_err().to_string().contains("is a link"));
            assert!(open_for_reading(&link).is_err());
            write_whole(&dir.path().join("key"), &link, "secret").unwrap();
            assert!(link.symlink_metadata().is_err(), "it was replaced, then renamed");
        }
        assert_eq!(std::fs::read_to_string(&victim).unwrap(), "precious");
        assert!(!dir.path().join("nowhere").exists());
        assert_eq!(std::fs::read_to_string(dir.path().join("key")).unwrap(), "secret");
        assert_eq!(mode(&dir.path().join("key")), 0o600);
        assert!(open_or_create(dir.path()).is_err(), "a directory");
    }

    /// What lies under the name of the part, with whatever rights, does not become the file.
    #[test]
    fn a_prepared_part_gives_away_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (key, part) = (dir.path().join("key"), dir.path().join("key.new"));
        std::fs::write(&part, "").unwrap();
        std::fs::set_permissions(&part, std::fs::Permissions::from_mode(0o666)).unwrap();
        let spy = File::open(&part).unwrap();
        write_whole(&key, &part, "secret").unwrap();
        assert_eq!(io::read_to_string(spy).unwrap(), "");
        assert_eq!(mode(&key), 0o600);
    }

    #[test]
    fn a_path_leads_to_one_file() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().canonicalize().unwrap();
        std::fs::create_dir(top.join("big")).unwrap();
        symlink("big", top.join("data")).unwrap();
        symlink("big/roost.db", top.join("one")).unwrap();
        symlink(top.join("one"), top.join("two")).unwrap();
        symlink("circle", top.join("circle")).unwrap();
        let real = top.join("big/roost.db");
        for path in ["data/roost.db", "one", "two", "big/../one", "big/roost.db"] {
            assert_eq!(resolved(&top.join(path)).unwrap(), real, "{path}: before it is there");
        }
        std::fs::write(&real, "x").unwrap();
        assert_eq!(resolved(&top.join("two")).unwrap(), real);
        assert_eq!(resolved(&top.join("no/such")).unwrap(), top.join("no/such"));
        assert!(resolved(&top.join("circle")).is_err());
    }

    #[test]
    fn the_mark_of_an_editor_is_not_part_of_a_text() {
        assert_eq!(without_mark("\u{feff}roost_1"), "roost_1");
        assert_eq!(without_mark("roost_1"), "roost_1");
    }
}
