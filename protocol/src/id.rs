//! The names of things on the wire and in the journal. Each is a newtype; `Display` is the whole
//! name, `fmt_short` ten characters of it for logs.
//!
//! Not here: how an id is made. That needs a clock or randomness, which this crate has not.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

/// A text that is not the id it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseIdError {
    /// A job or run id that is no UUID.
    #[error("`{0}` is not a UUID")]
    Uuid(String),
    /// A peer id that is not the base58 form of an ed25519 key's identity multihash.
    #[error("`{0}` is not the id of a peer (it begins with `12D3KooW`)")]
    Peer(String),
    /// A workflow's name with other letters, or too long.
    #[error("`{0}` is not a workflow name: 1 to 63 of a-z, 0-9 and `-`, not starting with `-`")]
    WorkflowName(String),
    /// What follows the `@` is not a version.
    #[error("`{0}` is not a version: a whole number from 1")]
    Version(String),
    /// A lease id that is not `EPOCH-COUNTER`.
    #[error("`{0}` is not a lease id")]
    Lease(String),
}

/// Declares an id that is a UUIDv7, so that ids sort by the time of their making.
macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub Uuid);

        impl $name {
            /// Ten characters for logs: the last ones, because the first are the time and look alike.
            pub fn fmt_short(&self) -> String {
                let text = self.0.simple().to_string();
                text[text.len() - 10..].to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                Uuid::from_str(text).map(Self).map_err(|_| ParseIdError::Uuid(text.to_owned()))
            }
        }
    };
}

uuid_id!(
    /// What a person submitted: a workflow and its parameters.
    JobId
);
uuid_id!(
    /// One attempt at a job on one slot.
    RunId
);

/// A process on the network: its ed25519 public key.
///
/// The text is libp2p's PeerId of that key (base58 of the identity multihash of the key's
/// protobuf form, <https://github.com/libp2p/specs/blob/master/peer-ids/peer-ids.md>).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId(pub [u8; 32]);

/// Identity multihash of 36 bytes that hold protobuf `PublicKey { Type: Ed25519, Data: 32 bytes }`.
const PEER_ID_PREFIX: [u8; 6] = [0x00, 0x24, 0x08, 0x01, 0x12, 0x20];

impl PeerId {
    /// Ten characters for logs: the last ones, because all begin alike.
    pub fn fmt_short(&self) -> String {
        let text = self.to_string();
        text[text.len() - 10..].to_owned()
    }
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = PEER_ID_PREFIX.to_vec();
        bytes.extend_from_slice(&self.0);
        f.write_str(&bs58::encode(bytes).into_string())
    }
}

impl fmt::Debug for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PeerId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let error = || ParseIdError::Peer(text.to_owned());
        if text.len() > 64 {
            return Err(error());
        }
        let bytes = bs58::decode(text).into_vec().map_err(|_| error())?;
        let key = bytes.strip_prefix(&PEER_ID_PREFIX).ok_or_else(error)?;
        key.try_into().map(Self).map_err(|_| error())
    }
}

/// A farm: the ed25519 public key of its root. The text is lower-case hex.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FarmId(pub [u8; 32]);

impl fmt::Display for FarmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for FarmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for FarmId {
    type Err = hex::FromHexError;

    fn from_str(text: &str) -> Result<Self, hex::FromHexError> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes)?;
        Ok(Self(bytes))
    }
}

/// Implements serde for 32-byte names: their text where people read it (JSON), their bytes in bincode.
macro_rules! serde_as_text {
    ($name:ident) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    serializer.collect_str(self)
                } else {
                    self.0.serialize(serializer)
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                if deserializer.is_human_readable() {
                    let text = String::deserialize(deserializer)?;
                    text.parse().map_err(serde::de::Error::custom)
                } else {
                    <[u8; 32]>::deserialize(deserializer).map(Self)
                }
            }
        }
    };
}
pub(crate) use serde_as_text;

serde_as_text!(PeerId);
serde_as_text!(FarmId);

/// A node's time-bounded duty to a run: the epoch of the coordinator that granted it, and a count.
///
/// The epoch is raised durably at each start of a coordinator, so no two grants share an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LeaseId {
    /// Which start of the coordinator granted it.
    pub epoch: u64,
    /// The how-manieth grant of that start it was.
    pub counter: u64,
}

impl LeaseId {
    /// For logs; leases are short anyway.
    pub fn fmt_short(&self) -> String {
        self.to_string()
    }
}

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.epoch, self.counter)
    }
}

impl FromStr for LeaseId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let parse = || {
            let (epoch, counter) = text.split_once('-')?;
            Some(Self { epoch: epoch.parse().ok()?, counter: counter.parse().ok()? })
        };
        parse().ok_or_else(|| ParseIdError::Lease(text.to_owned()))
    }
}

/// The unit of capacity on one node, counted from 0: a GPU, or the CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SlotId(pub u16);

impl fmt::Display for SlotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The name under which a workflow is deployed: `[a-z0-9][a-z0-9-]{0,62}`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct WorkflowName(String);

impl WorkflowName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The nearest valid name to a free text, such as a file's name: `Pixel Art.cpack` gives `pixel-art-cpack`.
    pub fn from_free_text(text: &str) -> Option<Self> {
        let mut name = String::new();
        for character in text.chars().flat_map(char::to_lowercase) {
            if character.is_ascii_alphanumeric() {
                name.push(character);
            } else if !name.is_empty() && !name.ends_with('-') {
                name.push('-');
            }
        }
        name.truncate(63);
        name.trim_end_matches('-').parse().ok()
    }
}

impl fmt::Display for WorkflowName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for WorkflowName {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let bytes = text.as_bytes();
        let valid = (1..=63).contains(&bytes.len())
            && letter(bytes[0])
            && bytes.iter().all(|&byte| letter(byte) || byte == b'-');
        if valid { Ok(Self(text.to_owned())) } else { Err(ParseIdError::WorkflowName(text.to_owned())) }
    }
}

impl TryFrom<String> for WorkflowName {
    type Error = ParseIdError;

    fn try_from(text: String) -> Result<Self, ParseIdError> {
        text.parse()
    }
}

impl From<WorkflowName> for String {
    fn from(name: WorkflowName) -> String {
        name.0
    }
}

/// One deployed version of a workflow, written `name@3`. Versions count from 1 and never change.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct WorkflowVersion {
    /// The workflow's name.
    pub name: WorkflowName,
    /// Which deploy of that name it was.
    pub version: u32,
}

impl fmt::Display for WorkflowVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.name, self.version)
    }
}

/// What a caller names: `name` for the version that is current, or `name@3`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkflowSelector {
    /// The workflow's name.
    pub name: WorkflowName,
    /// The version, if one was named.
    pub version: Option<u32>,
}

impl FromStr for WorkflowSelector {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let Some((name, version)) = text.split_once('@') else {
            return Ok(Self { name: text.parse()?, version: None });
        };
        let number = version.parse().ok().filter(|&number| number > 0);
        let number = number.ok_or_else(|| ParseIdError::Version(version.to_owned()))?;
        Ok(Self { name: name.parse()?, version: Some(number) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peer_id_is_the_text_that_libp2p_writes() {
        // From the peer id specification's test vectors: an ed25519 key whose 32 bytes are these.
        let key = hex::decode("1ed1e8fae2c4a144b8be8fd4b47bf3d3b34b871c3cacf6010f0e42d474fce27e");
        let peer = PeerId(key.expect("hex").try_into().expect("32 bytes"));
        assert!(peer.to_string().starts_with("12D3KooW"));
        assert_eq!(peer.to_string().parse(), Ok(peer));
        assert_eq!(peer.fmt_short().len(), 10);
    }

    #[test]
    fn hostile_peer_id_is_refused() {
        for text in ["", "12D3KooW", "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N", &"1".repeat(70)] {
            assert_eq!(text.parse::<PeerId>(), Err(ParseIdError::Peer(text.to_owned())));
        }
    }

    #[test]
    fn workflow_names_are_checked_and_derived() {
        for good in ["a", "pixel-art", "0", &"x".repeat(63)] {
            assert!(good.parse::<WorkflowName>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "A", "a_b", "a/b", "..", &"x".repeat(64)] {
            assert!(bad.parse::<WorkflowName>().is_err(), "{bad}");
        }
        let derived = WorkflowName::from_free_text("Pixel Art (v2)!").expect("has letters");
        assert_eq!(derived.as_str(), "pixel-art-v2");
        assert_eq!(WorkflowName::from_free_text("***"), None);
    }

    #[test]
    fn selector_takes_a_version_or_none() {
        let selector: WorkflowSelector = "pixel-art@3".parse().expect("valid");
        assert_eq!((selector.name.as_str(), selector.version), ("pixel-art", Some(3)));
        assert!("pixel-art@0".parse::<WorkflowSelector>().is_err());
        assert!("pixel-art@x".parse::<WorkflowSelector>().is_err());
    }
}
