//! What people paste: tickets, and names of blobs.

use std::fmt::Display;
use std::str::FromStr;

use bolero::check;
use protocol::blob_ticket::BlobTicket;
use protocol::ticket::Ticket;
use protocol::{BlobHash, BlobName, BlobRef, PeerId};

use crate::INPUTS;

/// A ticket that is taken is written as it was read, apart from its case; one that was altered is refused.
#[test]
fn tickets() {
    let blob = BlobRef { hash: BlobHash([7; 32]), size: 1 << 20 };
    let address = "192.0.2.7:4290".parse().expect("an address");
    let good = BlobTicket::new(blob, "model", PeerId([9; 32]), vec![address], [3; 32]).to_string();
    check!().with_iterations(INPUTS).with_type::<(Vec<(u16, char)>, String)>().for_each(
        |(alterations, text)| {
            let mut altered: Vec<char> = good.chars().collect();
            for (place, with) in alterations {
                let place = usize::from(*place) % altered.len();
                altered[place] = *with;
            }
            let altered: String = altered.into_iter().collect();
            if let Ok(ticket) = altered.parse::<BlobTicket>() {
                assert_eq!(ticket.to_string(), good, "an altered ticket was taken");
            }
            for text in [text.clone(), format!("blob1{text}"), format!("farm1{text}")] {
                is_stable::<BlobTicket>(&text);
                is_stable::<Ticket>(&text);
            }
        },
    );
}

/// A name that is taken is written as a name that is read as the same.
#[test]
fn names() {
    check!().with_iterations(INPUTS).with_type::<(String, [u8; 32])>().for_each(|(text, hash)| {
        let digits: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        for text in [text.clone(), digits.clone(), format!("sha256:{digits}"), format!("{digits}{text}")] {
            is_stable::<BlobHash>(&text);
            is_stable::<BlobName>(&text);
            is_stable::<PeerId>(&text);
        }
    });
}

fn is_stable<T: FromStr + Display>(text: &str) {
    let Ok(read) = text.parse::<T>() else { return };
    let written = read.to_string();
    let again = written.parse::<T>().unwrap_or_else(|_| panic!("`{written}` was written and cannot be read"));
    assert_eq!(again.to_string(), written);
}
