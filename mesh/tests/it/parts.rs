//! Parts of a piece are passed on as they are verified, before the piece is whole.

use std::sync::Arc;

use mesh::frames::{FrameReceiver, FrameSender};
use mesh::plane::Channel;
use mesh::tree::{TreeHasher, pairs_of, upper_size};
use protocol::wire::{BlobAnswer, BlobRequest, Get, Have, MAX_BLOB_FRAME, Outboard, PART_SIZE, Piece};
use protocol::{BlobRef, PIECE_SIZE};
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::askers::asker;
use crate::farm::{Farm, PATIENCE, bytes};
use crate::rogue::{Rogue, Talk};

/// How many parts of the first piece come before the seed waits.
const BEFORE: usize = 3;

/// A blob, and what crosses of it.
struct Original {
    blob: BlobRef,
    bytes: Vec<u8>,
    outboard: Vec<u8>,
}

impl Original {
    fn new() -> Self {
        let bytes = bytes(2 * PIECE_SIZE as usize);
        let mut hasher = TreeHasher::default();
        hasher.update(&bytes);
        let (blob, outboard) = hasher.finish();
        Self { blob, bytes, outboard }
    }

    /// What follows the frame of a part.
    fn part(&self, piece: u64, offset: usize) -> Vec<u8> {
        let (first, length) = pairs_of(self.blob.size, piece);
        let pairs = if offset == 0 { &self.outboard[first as usize..][..length] } else { &[] };
        let begin = piece as usize * PIECE_SIZE as usize + offset;
        [pairs, &self.bytes[begin..][..PART_SIZE]].concat()
    }

    /// Serves it, and waits in the middle of the first piece that is asked for.
    async fn serve(&self, mut talk: Talk, go_on: &Notify) {
        let mut is_first = true;
        while let Ok(Some(request)) = talk.requests.recv().await {
            match request {
                BlobRequest::Open(_) => {
                    let _ = talk.answers.send(&BlobAnswer::Have(Have::Whole)).await;
                }
                BlobRequest::GetOutboard(_) => {
                    let length = upper_size(self.blob.size);
                    let outboard = BlobAnswer::Outboard(Outboard { length });
                    let _ = talk.answers.send_with(&outboard, &self.outboard[..length as usize]).await;
                }
                BlobRequest::Get(get) => {
                    for index in get.first..get.first + get.count {
                        for (count, offset) in (0..PIECE_SIZE as usize).step_by(PART_SIZE).enumerate() {
                            if is_first && count == BEFORE {
                                go_on.notified().await;
                                is_first = false;
                            }
                            let piece = BlobAnswer::Piece(Piece { index, offset: offset as u64 });
                            let _ = talk.answers.send_with(&piece, &self.part(index, offset)).await;
                        }
                    }
                }
                _ => {}
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn part_of_a_piece_is_passed_on_before_the_rest_has_come() {
    let farm = Farm::new();
    let (original, go_on) = (Arc::new(Original::new()), Arc::new(Notify::new()));
    let seed = {
        let (original, go_on) = (Arc::clone(&original), Arc::clone(&go_on));
        Rogue::start(&farm, move |talk| {
            let (original, go_on) = (Arc::clone(&original), Arc::clone(&go_on));
            async move { original.serve(talk, &go_on).await }
        })
        .await
    };
    let (middle, blob) = (farm.peer().await, original.blob);
    let exchange = middle.exchange.clone();
    let fetching = tokio::spawn(async move { exchange.fetch(blob, &[seed.provider], None).await });

    let last = asker(&farm, &middle).await;
    let first = timeout(PATIENCE, begun(&last.link, blob)).await.expect("a part has come");
    let (mut requests, mut answers, piece) = first;
    requests.send(&BlobRequest::Get(Get { first: piece, count: 1 })).await.expect("the link is open");
    for (count, offset) in (0..PIECE_SIZE as usize).step_by(PART_SIZE).enumerate() {
        if count == BEFORE {
            assert_eq!(middle.exchange.transfers()[0].here, 0, "no piece is whole");
            go_on.notify_one();
        }
        let answer = timeout(PATIENCE, next_piece(&mut answers)).await.expect("it is passed on");
        assert_eq!(answer, Piece { index: piece, offset: offset as u64 });
        let expected = original.part(piece, offset);
        let mut came = vec![0; expected.len()];
        answers.recv_bytes(&mut came).await.expect("it follows");
        assert!(came == expected, "part {count} differs");
    }
    fetching.await.expect("no panic").expect("the seed goes on");
}

type Conversation = (FrameSender<BlobRequest>, FrameReceiver<BlobAnswer>, u64);

/// Opens the blob at a peer until it offers a piece.
async fn begun(link: &Arc<dyn mesh::plane::Link>, blob: BlobRef) -> Conversation {
    loop {
        let Channel { reader, writer } = link.open().await.expect("the link is open");
        let mut requests = FrameSender::with_limit(writer, MAX_BLOB_FRAME);
        let mut answers = FrameReceiver::with_limit(reader, MAX_BLOB_FRAME);
        requests.send(&BlobRequest::Open(blob)).await.expect("the link is open");
        if let Ok(Some(BlobAnswer::Have(Have::Pieces(bits)))) = answers.recv().await
            && let Some(piece) = (0..blob.pieces()).find(|piece| bits[0] & (1 << piece) != 0)
        {
            return (requests, answers, piece);
        }
    }
}

/// The next announced piece, whatever is told meanwhile.
async fn next_piece(answers: &mut FrameReceiver<BlobAnswer>) -> Piece {
    loop {
        match answers.recv().await.expect("the link is open") {
            Some(BlobAnswer::Piece(piece)) => return piece,
            Some(BlobAnswer::Gained(_) | BlobAnswer::Peers(_)) => {}
            answer => panic!("{answer:?}"),
        }
    }
}
