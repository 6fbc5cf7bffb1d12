//! What comes with a blob before anything of it is known: its hash tree, the bitmap of its pieces, the list
//! of a folder's files.

use bolero::check;
use mesh::store::Pieces;
use mesh::tree::{OutboardVerifier, PAIR, Tree, TreeHasher, pairs_of, upper_size};

use protocol::{BlobRef, Collection, PIECE_SIZE};

use crate::INPUTS;

/// Only the upper pairs of the blob are taken, however they are cut, altered, shortened or prolonged.
#[test]
fn outboards() {
    let (blob, outboard) = hashed(7 * PIECE_SIZE + 5);
    let upper = &outboard[..upper_size(blob.size) as usize];
    check!().with_iterations(INPUTS).with_type::<Changes>().for_each(|changes| {
        let bytes = changed(upper, changes);
        assert_eq!(verify(blob, &bytes).is_some(), bytes == upper);
    });
}

/// Only the pairs of a piece are taken with it, whatever comes in their place.
#[test]
fn pairs_of_pieces() {
    let (blob, outboard) = hashed(2 * PIECE_SIZE + 100_000);
    let tree = verify(blob, &outboard[..upper_size(blob.size) as usize]).expect("it is the blob's");
    check!().with_iterations(INPUTS).with_type::<(u8, Changes)>().for_each(|(piece, changes)| {
        let piece = u64::from(piece % 3);
        let (first, length) = pairs_of(blob.size, piece);
        let pairs = &outboard[first as usize..][..length];
        let bytes = changed(pairs, changes);
        assert_eq!(tree.piece(piece, &bytes).is_ok(), bytes == pairs);
    });
}

/// A blob of any size and hash takes no outboard that somebody made up, and ends.
#[test]
fn made_up_outboards() {
    check!().with_iterations(INPUTS).with_type::<([u8; 32], u64, Vec<u8>)>().for_each(
        |(hash, size, bytes)| {
            let blob = BlobRef { hash: protocol::BlobHash(*hash), size: *size };
            let Some(tree) = verify(blob, bytes) else { return };
            assert!(upper_size(*size) == 0 && bytes.is_empty());
            // What has no pairs at all is told by its hash alone.
            assert!(tree.piece(0, bytes).is_err() || pairs_of(*size, 0).1 == 0);
        },
    );
}

/// Bytes that are altered at some places, have others behind them, and end somewhere.
type Changes = (Vec<(u16, u8)>, u16, Vec<u8>);

fn changed(bytes: &[u8], (alterations, length, behind): &Changes) -> Vec<u8> {
    let mut changed = bytes.to_vec();
    for (place, with) in alterations {
        let place = usize::from(*place) % changed.len();
        changed[place] ^= with;
    }
    changed.extend_from_slice(behind);
    changed.truncate(usize::from(*length) % (2 * bytes.len()));
    changed
}

fn hashed(size: u64) -> (BlobRef, Vec<u8>) {
    let whole: Vec<u8> = (0..size).map(|index| (index % 251) as u8).collect();
    let mut hasher = TreeHasher::default();
    hasher.update(&whole);
    hasher.finish()
}

fn verify(blob: BlobRef, bytes: &[u8]) -> Option<Tree> {
    let mut verifier = OutboardVerifier::new(blob);
    bytes.chunks(3 * PAIR).try_for_each(|part| verifier.update(part)).ok()?;
    verifier.finish().ok()
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
