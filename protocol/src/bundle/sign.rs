//! A publisher's signature put into a bundle: every other entry is copied as it is.
//!
//! Not here: what is signed; that is the lockfile's.

use std::io::{Read, Seek, Write};

use ed25519_dalek::SigningKey;
use zip::result::ZipError;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

use super::{BundleError, BundleLimits, LOCKFILE, read_bundle};
use crate::blob::BlobRef;
use crate::lockfile::Lockfile;

/// Why a bundle was not signed.
#[derive(Debug, thiserror::Error)]
pub enum SignBundleError {
    /// It is none.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// It could not be copied.
    #[error("signed bundle cannot be written")]
    Write(#[source] ZipError),
}

/// Copies a bundle with its lockfile signed, in place of any signature that it had, and says what was signed. A
/// bundle without a lockfile of ours gets one, which stands for its `snapshot.json` from then on.
pub fn sign_bundle(
    mut bundle: impl Read + Seek,
    limits: &BundleLimits,
    publisher: &SigningKey,
    signed: impl Write + Seek,
) -> Result<Lockfile, SignBundleError> {
    let mut pass_over = |_: &str, reader: &mut dyn Read| BlobRef::of_reader(reader);
    let mut lockfile = read_bundle(&mut bundle, limits, &mut pass_over)?.lockfile;
    lockfile.sign(publisher);
    let copy = || -> Result<(), ZipError> {
        let (mut from, mut to) = (ZipArchive::new(bundle)?, ZipWriter::new(signed));
        for index in 0..from.len() {
            let entry = from.by_index_raw(index)?;
            if entry.name()? != LOCKFILE {
                to.raw_copy_file(entry)?;
            }
        }
        let options = SimpleFileOptions::default().compression_method(CompressionMethod::Deflated);
        to.start_file(LOCKFILE, options)?;
        to.write_all(&lockfile.to_canonical_json())?;
        to.finish()?.flush()?;
        Ok(())
    };
    copy().map_err(SignBundleError::Write)?;
    Ok(lockfile)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::super::SNAPSHOT;
    use super::*;
    use crate::facts;
    use crate::lockfile::PublisherKey;

    #[test]
    fn signed_bundle_says_the_same_and_who_vouches_for_it() {
        let read = |zip: &[u8]| {
            let mut name = |_: &str, reader: &mut dyn Read| {
                let mut bytes = Vec::new();
                reader.read_to_end(&mut bytes)?;
                Ok(BlobRef::of(&bytes))
            };
            read_bundle(Cursor::new(zip), &BundleLimits::default(), &mut name).expect("a bundle")
        };
        let sign = |zip: &[u8], of: u8| {
            let mut signed = Cursor::new(Vec::new());
            let key = SigningKey::from_bytes(&[of; 32]);
            sign_bundle(Cursor::new(zip), &BundleLimits::default(), &key, &mut signed).expect("signed");
            (signed.into_inner(), PublisherKey(key.verifying_key().to_bytes()))
        };
        let plain = facts::bytes("comfy-pack/cpack/tiny.cpack.zip");
        let (once, first) = sign(&plain, 1);
        let (twice, second) = sign(&once, 2);
        for (zip, publisher) in [(once, first), (twice, second)] {
            let (bundle, plain) = (read(&zip), read(&plain));
            assert_eq!(bundle.lockfile.verify(), Ok(publisher));
            assert_eq!(bundle.lockfile.hash(), plain.lockfile.hash());
            assert_eq!(bundle.manifest.inputs, plain.manifest.inputs);
            assert_eq!(bundle.workflow, plain.workflow);
            let archive = ZipArchive::new(Cursor::new(zip)).expect("a zip");
            let names: Vec<_> = archive.file_names().map(|name| name.expect("UTF-8").into_owned()).collect();
            assert_eq!(names.iter().filter(|name| *name == LOCKFILE).count(), 1);
            assert!(names.iter().any(|name| name == SNAPSHOT));
        }
    }
}
