//! What comes with a blob before anything of it is known: its hash tree, the bitmap of its pieces, the list
//! of a folder's files.

use bolero::check;
use mesh::store::Pieces;
use mesh::tree::{OutboardVerifier, PAIR, TreeHasher, groups};

use protocol::{BlobRef, Collection, GROUP_SIZE};

use crate::INPUTS;

/// Only the outboard of the blob is taken, however it is cut, altered, shortened or prolonged.
#[test]
fn outboards() {
    let whole: Vec<u8> = (0..7 * GROUP_SIZE + 5).map(|index| (index % 251) as u8).collect();
    let mut hasher = TreeHasher::default();
    hasher.update(&whole);
    let (blob, outboard) = hasher.finish();
    check!().with_iterations(INPUTS).with_type::<(Vec<(u16, u8)>, u16, Vec<u8>)>().for_each(
        |(alterations, length, behind)| {
            let mut bytes = outboard.clone();
            for (place, with) in alterations {
                let place = usize::from(*place) % bytes.len();
                bytes[place] ^= with;
            }
            bytes.extend_from_slice(behind);
            bytes.truncate(usize::from(*length) % (2 * outboard.len()));
            let taken = verify(blob, &bytes);
            assert_eq!(taken, bytes == outboard);
        },
    );
}

/// A blob of any size and hash takes no outboard that somebody made up, and ends.
#[test]
fn made_up_outboards() {
    check!().with_iterations(INPUTS).with_type::<([u8; 32], u64, Vec<u8>)>().for_each(
        |(hash, size, bytes)| {
            let blob = BlobRef { hash: protocol::BlobHash(*hash), size: *size };
            assert_eq!(verify(blob, bytes), groups(*size) == 1 && bytes.is_empty());
        },
    );
}

fn verify(blob: BlobRef, bytes: &[u8]) -> bool {
    let mut verifier = OutboardVerifier::new(blob);
    bytes.chunks(3 * PAIR).all(|part| verifier.update(part).is_ok()) && verifier.finish().is_ok()
}

/// A bitmap that is taken says of no piece past the end that it is there.
#[test]
fn bitmaps() {
    check!().with_iterations(INPUTS).with_type::<(u8, Vec<u8>)>().for_each(|(count, bits)| {
        let count = u64::from(*count);
        let Some(pieces) = Pieces::from_bits(count, bits.clone()) else { return };
        assert_eq!(pieces.bits(), bits);
        assert!(pieces.len() <= count);
        assert!((count..count + 16).all(|piece| !pieces.contains(piece)));
        let ranges = Pieces::none(count).missing_from(&pieces, 3);
        assert_eq!(ranges.iter().map(|range| range.end - range.start).sum::<u64>(), pieces.len());
    });
}

/// A list of files that is taken names each file once, inside its folder, and is written as it was read.
#[test]
fn collections() {
    check!().with_iterations(INPUTS).with_type::<(Vec<(String, u32)>, Vec<u8>)>().for_each(
        |(files, bytes)| {
            let hash = "ab".repeat(32);
            let file = |(path, size): &(String, u32)| {
                format!("{{\"hash\":\"{hash}\",\"path\":{path:?},\"size\":{size}}}")
            };
            let list = files.iter().map(file).collect::<Vec<_>>().join(",");
            for text in [bytes.clone(), format!("{{\"files\":[{list}]}}").into_bytes()] {
                let Ok(collection) = Collection::parse(&text) else { continue };
                for file in collection.files() {
                    assert!(!file.path.starts_with('/') && file.path.split('/').all(|part| part != ".."));
                }
                let again = Collection::parse(&collection.to_canonical_json()).expect("it is well-formed");
                assert_eq!(again, collection);
            }
        },
    );
}
