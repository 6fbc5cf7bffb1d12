//! What two members tell each other first: where they are reached.
//!
//! **Stream.** [`HELLO_PROTOCOL`], opened by whoever dialled, behind the gate: [`GateMessage::Hello`] each
//! way, then one [`ContactMessage`] each way, the dialler's first. Only after that do the protocols run on
//! the connection that speak by themselves (Kademlia, relay), on either side. Either side may say it again
//! later, when what it said has changed.
//!
//! [`GateMessage::Hello`]: crate::message::GateMessage::Hello

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::blob::BlobRef;
use crate::codec::messages;
use crate::origin::BlobName;
use crate::wire::is_dialable;

/// The protocol by which two members begin, whatever their roles.
pub const HELLO_PROTOCOL: &str = "/comfy-farm/hello/1";
/// The protocol by which a member is asked for a blob: [`GateMessage::Hello`] each way, one
/// [`WhereMessage::Where`], one [`WhereMessage::Held`].
///
/// [`GateMessage::Hello`]: crate::message::GateMessage::Hello
pub const WHERE_PROTOCOL: &str = "/comfy-farm/where/1";
/// The protocol of a data-plane channel that crosses a control connection, for want of a better way.
pub const RELAYED_BLOB_PROTOCOL: &str = "/comfy-farm/blob/1";
/// The most addresses of one plane in a [`Contact`].
pub const MAX_CONTACT_ADDRESSES: usize = 16;
/// The longest text of one address.
pub const MAX_ADDRESS_TEXT: usize = 160;

messages! {
    /// What follows the Hello on a stream of [`HELLO_PROTOCOL`].
    ContactMessage {
        /// Where the sender is reached.
        0x0020 => Contact(Contact),
    }
}

messages! {
    /// What follows the Hello on a stream of [`WHERE_PROTOCOL`].
    WhereMessage {
        /// Is this blob here?
        0x0021 => Where(Where),
        /// The answer.
        0x0022 => Held(Held),
    }
}

/// A question for a blob that others may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Where {
    /// One of its names.
    pub name: BlobName,
}

/// What is here of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Its two numbers, if it is here, whole. What they are for a SHA-256 is a hint, proven by its bytes.
    pub blob: Option<BlobRef>,
}

/// Where a member is reached. A hint, proven by dialling.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contact {
    /// Where its control plane listens, as multiaddresses; at most [`MAX_CONTACT_ADDRESSES`].
    pub control: Vec<String>,
    /// Where its data plane listens; at most [`MAX_CONTACT_ADDRESSES`].
    pub data: Vec<SocketAddr>,
    /// Whether another member has dialled it: it answers questions of Kademlia then.
    pub reachable: bool,
    /// Whether it passes circuits on for members that cannot be dialled.
    pub relays: bool,
}

impl Contact {
    /// A contact within the limits, of what is known.
    pub fn new(control: Vec<String>, data: Vec<SocketAddr>, reachable: bool, relays: bool) -> Self {
        let mut contact = Self { control, data, reachable, relays };
        contact.control.retain(|address| address.len() <= MAX_ADDRESS_TEXT);
        contact.control.truncate(MAX_CONTACT_ADDRESSES);
        contact.data.truncate(MAX_CONTACT_ADDRESSES);
        contact
    }

    /// The contact without data addresses of nobody; `None` from a peer that sends more than it may.
    pub fn dialable(mut self) -> Option<Self> {
        let is_within = self.control.len() <= MAX_CONTACT_ADDRESSES
            && self.data.len() <= MAX_CONTACT_ADDRESSES
            && self.control.iter().all(|address| address.len() <= MAX_ADDRESS_TEXT);
        if !is_within {
            return None;
        }
        self.data.retain(is_dialable);
        Some(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blob::BlobHash;
    use crate::codec::{MAX_HELLO, encode};

    #[test]
    fn bytes_are_those_of_version_1() {
        let contact = Contact {
            control: vec!["/ip4/1.2.3.4/tcp/1".to_owned()],
            data: vec!["127.0.0.1:4290".parse().expect("an address")],
            reachable: true,
            relays: false,
        };
        let control = format!("01000000000000001200000000000000{}", hex::encode("/ip4/1.2.3.4/tcp/1"));
        let data = "0100000000000000000000007f000001c210";
        let frame = encode(&ContactMessage::Contact(contact), MAX_HELLO).map(hex::encode);
        assert_eq!(frame, Ok(format!("380000002000{control}{data}0100")));
    }

    #[test]
    fn question_and_answer_are_those_of_version_1() {
        let blob = BlobRef { hash: BlobHash([0xaa; 32]), size: 5 };
        let hash = "aa".repeat(32);
        let frame = |message| encode(&message, MAX_HELLO).map(hex::encode);
        let question = Where { name: BlobName::Blake3(blob.hash) };
        assert_eq!(frame(WhereMessage::Where(question)), Ok(format!("26000000210000000000{hash}")));
        let answer = Held { blob: Some(blob) };
        assert_eq!(frame(WhereMessage::Held(answer)), Ok(format!("2b000000220001{hash}0500000000000000")));
        assert_eq!(frame(WhereMessage::Held(Held { blob: None })), Ok("03000000220000".to_owned()));
    }

    #[test]
    fn largest_contact_fits_its_frame_and_a_larger_one_is_refused() {
        let control = vec!["x".repeat(MAX_ADDRESS_TEXT); MAX_CONTACT_ADDRESSES + 1];
        let data = vec!["[2001:db8::7]:4290".parse().expect("an address"); MAX_CONTACT_ADDRESSES + 1];
        let contact = Contact::new(control.clone(), data.clone(), true, true);
        assert!(encode(&ContactMessage::Contact(contact.clone()), MAX_HELLO).is_ok());
        assert_eq!(contact.clone().dialable(), Some(contact.clone()));
        assert_eq!(Contact { control, ..contact.clone() }.dialable(), None);
        assert_eq!(Contact { data, ..contact.clone() }.dialable(), None);
        let long = vec!["x".repeat(MAX_ADDRESS_TEXT + 1)];
        assert_eq!(Contact { control: long, ..contact }.dialable(), None);
    }
}
