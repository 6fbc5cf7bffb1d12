//! Members that ask for too much: their link is closed, and nobody else notices.

use std::sync::Arc;

use mesh::frames::{Reader, Writer};
use mesh::gate::{Side, exchange_hellos};
use mesh::plane::{Channel, Link, Plane, TlsPlane};
use protocol::codec::encode;
use protocol::wire::{BlobRequest, Get, MAX_BLOB_FRAME};
use protocol::{BlobRef, PeerId};
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use crate::farm::{Farm, PATIENCE, Peer, key, loopback};
use crate::log;

/// A member that has passed the gate, and does on its link whatever its test does.
pub(crate) struct Asker {
    pub(crate) link: Arc<dyn Link>,
    pub(crate) peer: PeerId,
    _plane: TlsPlane,
}

impl Asker {
    /// Opens a conversation about this blob and asks all of this; what there is to be read then. It does not end
    /// the conversation as long as the writer lives.
    async fn asks(&self, blob: BlobRef, requests: &[BlobRequest]) -> (Reader, Writer) {
        let Channel { reader, mut writer } = self.link.open().await.expect("the link is open");
        for request in [&[BlobRequest::Open(blob)], requests].concat() {
            let frame = encode(&request, MAX_BLOB_FRAME).expect("it is small");
            writer.write_all(&frame).await.expect("the link is open");
        }
        writer.flush().await.expect("the link is open");
        (reader, writer)
    }

    /// That its peer warned once, for this reason.
    fn was_blamed_once(&self, reason: &str) {
        let logged = log::warnings_about(self.peer);
        assert_eq!(logged.len(), 1, "{logged:#?}");
        assert!(logged[0].contains("its link is closed") && logged[0].contains(reason), "{logged:#?}");
    }
}

/// One with a link to this peer.
pub(crate) async fn asker(farm: &Farm, holder: &Peer) -> Asker {
    log::listen();
    let identity = key();
    let plane = TlsPlane::bind(&identity, loopback()).await.expect("a plane");
    let address = holder.provider().addresses[0];
    let link = plane.dial(holder.id, address).await.expect("it listens");
    let Channel { reader, writer } = link.open().await.expect("the link is open");
    let credentials = farm.credentials(identity.peer());
    let passed = exchange_hellos(reader, writer, &credentials, holder.id, Side::Dialled).await;
    assert!(passed.is_ok(), "it is a member");
    link.admit();
    Asker { link, peer: identity.peer(), _plane: plane }
}

async fn still_serves(farm: &Farm, holder: &Peer, blob: BlobRef) {
    let other = farm.peer().await;
    let fetching = other.exchange.fetch(blob, &[holder.provider()], None).await;
    fetching.expect("an honest member is served");
}

#[tokio::test(flavor = "multi_thread")]
async fn asker_with_a_thousand_channels_is_dropped() {
    let farm = Farm::new();
    let holder = farm.peer().await;
    let blob = holder.store.import_bytes(b"a model").await.expect("there is room");
    let asker = asker(&farm, &holder).await;
    let open = encode(&BlobRequest::Open(blob), MAX_BLOB_FRAME).expect("it is small");
    let mut channels = Vec::new();
    let opening = async {
        for _ in 0..1000 {
            let Ok(Channel { reader, mut writer }) = asker.link.open().await else { break };
            // A channel that was refused takes nothing, which is no reason to stop.
            let _ = writer.write_all(&open).await;
            let _ = writer.flush().await;
            channels.push((reader, writer));
        }
        asker.link.closed().await;
    };
    timeout(PATIENCE, opening).await.expect("the link is closed soon");
    asker.was_blamed_once("it opens channels without end");
    still_serves(&farm, &holder, blob).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn asker_that_sends_without_end_is_dropped() {
    let farm = Farm::new();
    let holder = farm.peer().await;
    let blob = holder.store.import_bytes(b"a model").await.expect("there is room");
    let asker = asker(&farm, &holder).await;
    let Channel { reader: _reader, mut writer } = asker.link.open().await.expect("the link is open");
    let sending = async {
        while writer.write_all(&[0xff; 64 << 10]).await.is_ok() {}
        asker.link.closed().await;
    };
    timeout(PATIENCE, sending).await.expect("the link is closed soon");
    asker.was_blamed_once("it announced more than a request may hold");
    still_serves(&farm, &holder, blob).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn asker_whose_ranges_are_none_of_the_blob_is_dropped() {
    let farm = Farm::new();
    let holder = farm.peer().await;
    let blob = holder.store.import_bytes(&[1; 3 << 20]).await.expect("there is room");
    let get = |first, count| BlobRequest::Get(Get { first, count });
    let past_the_end = vec![get(2, 2)];
    let not_to_be_counted = vec![get(u64::MAX, u64::MAX)];
    let out_of_order = vec![BlobRequest::Open(blob)];
    for requests in [past_the_end, not_to_be_counted, out_of_order] {
        let asker = asker(&farm, &holder).await;
        let (mut reader, _writer) = asker.asks(blob, &requests).await;
        let ending = async {
            let _ = tokio::io::copy(&mut reader, &mut tokio::io::sink()).await;
            asker.link.closed().await;
        };
        timeout(PATIENCE, ending).await.expect("the link is closed soon");
        asker.was_blamed_once("it asked for what the conversation does not allow");
        still_serves(&farm, &holder, blob).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn conversation_ends_where_a_piece_is_asked_for_again() {
    let farm = Farm::new();
    let holder = farm.peer().await;
    let blob = holder.store.import_bytes(&[1; 3 << 20]).await.expect("there is room");
    let asker = asker(&farm, &holder).await;
    let gets = [(0, 2), (1, 1), (2, 1)].map(|(first, count)| BlobRequest::Get(Get { first, count }));
    let (mut reader, _writer) = asker.asks(blob, &gets).await;
    let mut nowhere = tokio::io::sink();
    // How a channel ends is its plane's affair.
    let _ = timeout(PATIENCE, tokio::io::copy(&mut reader, &mut nowhere)).await.expect("it ends");
    assert!(!asker.link.is_closed());
    assert_eq!(log::warnings_about(asker.peer), Vec::<String>::new());
}
