//! The one ed25519 key of a process, and the peer's name that follows from it.
//!
//! Also how a farm's root key is kept. Not here: what a key signs; that is `protocol::membership`.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use ed25519_dalek::{SECRET_KEY_LENGTH, SigningKey};
use libp2p::identity::Keypair;
use protocol::PeerId;

/// A key of this process and its name.
#[derive(Clone)]
pub struct Identity {
    key: SigningKey,
}

/// Why a key could not be read or made.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The operating system refuses.
    #[error("{attempt} the key file `{}` did not succeed", path.display())]
    Io {
        /// What was attempted.
        attempt: &'static str,
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// Other people of the machine can read the key.
    #[error("others can read the key file `{path}` (mode {mode:03o}): run `chmod 600 {path}`", path = path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// The file holds something else.
    #[error("`{}` is no key file: it holds 64 hex digits and a newline", .0.display())]
    NoKey(PathBuf),
    /// There is a file already.
    #[error("`{}` is there already, and a key is never overwritten: name another file", .0.display())]
    Exists(PathBuf),
    /// The operating system gives no random bytes.
    #[error("the operating system gives no random bytes for a new key")]
    Random(#[source] getrandom::Error),
}

impl Identity {
    /// A new key that is nowhere on the disk.
    pub fn generate() -> Result<Self, IdentityError> {
        let mut secret = [0; SECRET_KEY_LENGTH];
        getrandom::fill(&mut secret).map_err(IdentityError::Random)?;
        Ok(Self { key: SigningKey::from_bytes(&secret) })
    }

    /// The key in this file; a new one, if there is no file. Whoever can read the file can be this peer,
    /// so a file that others can read is refused.
    pub fn load_or_create(path: &Path) -> Result<Self, IdentityError> {
        match fs::symlink_metadata(path) {
            Ok(_) => Self::load(path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => match Self::create(path) {
                // Another process was faster: its key is the one.
                Err(IdentityError::Exists(_)) => Self::load(path),
                created => created,
            },
            Err(source) => Err(IdentityError::Io { attempt: "reading", path: path.to_owned(), source }),
        }
    }

    /// The key in this file.
    pub fn load(path: &Path) -> Result<Self, IdentityError> {
        let failure = |source| IdentityError::Io { attempt: "reading", path: path.to_owned(), source };
        let mode = fs::metadata(path).map_err(failure)?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(IdentityError::Exposed { path: path.to_owned(), mode });
        }
        let text = fs::read(path).map_err(failure)?;
        let mut secret = [0; SECRET_KEY_LENGTH];
        hex::decode_to_slice(text.trim_ascii(), &mut secret)
            .map_err(|_| IdentityError::NoKey(path.to_owned()))?;
        Ok(Self { key: SigningKey::from_bytes(&secret) })
    }

    /// A new key in a new file.
    pub fn create(path: &Path) -> Result<Self, IdentityError> {
        let failure = |source| IdentityError::Io { attempt: "writing", path: path.to_owned(), source };
        let identity = Self::generate()?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        // A temporary file has mode 0600 from its first moment.
        let mut file = tempfile::NamedTempFile::new_in(folder).map_err(failure)?;
        writeln!(file, "{}", hex::encode(identity.key.to_bytes())).map_err(failure)?;
        file.as_file().sync_all().map_err(failure)?;
        match file.persist_noclobber(path) {
            Ok(_) => Ok(identity),
            Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => {
                Err(IdentityError::Exists(path.to_owned()))
            }
            Err(error) => Err(failure(error.error)),
        }
    }

    /// The peer that has this key.
    pub fn peer(&self) -> PeerId {
        PeerId(self.key.verifying_key().to_bytes())
    }

    /// The key, to sign with.
    pub fn signing_key(&self) -> &SigningKey {
        &self.key
    }

    pub(crate) fn keypair(&self) -> Keypair {
        Keypair::ed25519_from_bytes(self.key.to_bytes()).expect("32 bytes are an ed25519 key")
    }
}

/// The multihash code of an id that contains its key.
const IDENTITY_HASH: u64 = 0;

/// libp2p's form of a peer's name.
pub(crate) fn to_libp2p(peer: PeerId) -> Option<libp2p::PeerId> {
    let key = libp2p::identity::ed25519::PublicKey::try_from_bytes(&peer.0).ok()?;
    Some(libp2p::PeerId::from_public_key(&key.into()))
}

/// The name of a libp2p peer; `None` for one whose key is not ed25519, which no member's is.
pub(crate) fn from_libp2p(peer: libp2p::PeerId) -> Option<PeerId> {
    let multihash = peer.as_ref();
    if multihash.code() != IDENTITY_HASH {
        return None;
    }
    let key = libp2p::identity::PublicKey::try_decode_protobuf(multihash.digest()).ok()?;
    Some(PeerId(key.try_into_ed25519().ok()?.to_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_is_made_once_readable_by_its_owner_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("key");
        let made = Identity::load_or_create(&path).expect("a new key");
        assert_eq!(fs::metadata(&path).expect("the file").permissions().mode() & 0o777, 0o600);
        assert_eq!(Identity::load_or_create(&path).expect("the same key").peer(), made.peer());
        assert!(matches!(Identity::create(&path), Err(IdentityError::Exists(_))));
        assert_eq!(Identity::load(&path).expect("the same key").peer(), made.peer());
    }

    #[test]
    fn exposed_or_damaged_key_file_is_refused_with_the_cure() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("key");
        Identity::load_or_create(&path).expect("a new key");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("own file");
        let error = Identity::load_or_create(&path).err().expect("others can read it").to_string();
        assert!(error.contains("chmod 600") && error.contains("640"), "{error}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("own file");
        fs::write(&path, "no key").expect("own file");
        assert!(matches!(Identity::load_or_create(&path), Err(IdentityError::NoKey(_))));
    }

    #[test]
    fn peer_has_the_same_name_in_libp2p() {
        let peer = Identity::generate().expect("a key").peer();
        let theirs = to_libp2p(peer).expect("an ed25519 key");
        assert_eq!(theirs.to_string(), peer.to_string());
        assert_eq!(from_libp2p(theirs), Some(peer));
        assert_eq!(from_libp2p(libp2p::PeerId::random()), None, "a hash of no key");
    }
}
