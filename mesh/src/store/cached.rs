//! Reading what the system has in memory anyway, at once and on any thread.
//!
//! A model that was just fetched, or is fetched by many, lies in the page cache: handing each read to a
//! thread that may block then costs more than the read. Not here: what is read.

use std::fs;
use std::io;
use std::io::IoSliceMut;
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;

use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};
use rustix::fs::{Advice, fadvise};
use rustix::io::{Errno, ReadWriteFlags, preadv2};

/// How much the disk is asked for beyond what is read.
const AHEAD: u64 = 4 << 20;

/// Whether a file has no disk: it lies in memory as a whole.
pub(super) fn is_in_memory(file: &fs::File) -> bool {
    fstatfs(file).is_ok_and(|system| system.filesystem_type() == TMPFS_MAGIC)
}

/// Fills `bytes` from there, unless a disk would have to be waited for; `false` where it would, or where the
/// file system cannot tell.
pub(super) fn read_cached(file: &fs::File, bytes: &mut [u8], offset: u64) -> io::Result<bool> {
    match preadv2(file, &mut [IoSliceMut::new(bytes)], offset, ReadWriteFlags::NOWAIT) {
        // Less than asked for: the rest is on the disk, or the file ends. Whoever waits finds out.
        Ok(read) => Ok(read == bytes.len()),
        // A file system in memory does not know the question.
        Err(Errno::OPNOTSUPP) if is_in_memory(file) => file.read_exact_at(bytes, offset).map(|()| true),
        Err(Errno::AGAIN | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Fills `bytes` from there and has the disk bring what follows. It blocks.
pub(super) fn read_ahead(file: &fs::File, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    // Advice alone: a file system that takes none reads all the same.
    let _ = fadvise(file, offset, NonZeroU64::new(bytes.len() as u64 + AHEAD), Advice::WillNeed);
    file.read_exact_at(bytes, offset)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn what_was_just_written_is_read_at_once_and_what_is_not_there_is_not() {
        for folder in ["/dev/shm", "."] {
            let mut file = tempfile::tempfile_in(folder).expect("there is room");
            file.write_all(b"some bytes").expect("there is room");
            let mut bytes = [0; 5];
            // Which disks can tell is up to the system; what is said to be read, is.
            if read_cached(&file, &mut bytes, 5).expect("it is there") {
                assert_eq!(&bytes, b"bytes");
            }
            read_ahead(&file, &mut bytes, 0).expect("it is there");
            assert_eq!(&bytes, b"some ");
            assert!(!read_cached(&file, &mut bytes, 8).unwrap_or(false), "three bytes are lacking");
            assert!(read_ahead(&file, &mut bytes, 8).is_err(), "three bytes are lacking");
        }
    }
}
