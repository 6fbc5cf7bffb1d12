//! A member that breaks the blob wire: it passes the gate and answers each conversation as it is told.

use std::sync::Arc;

use mesh::frames::{FrameReceiver, FrameSender};
use mesh::gate::{Credentials, Side, exchange_hellos};
use mesh::plane::{Channel, Plane, TlsPlane};
use protocol::message::Provider;
use protocol::wire::{BlobAnswer, BlobRequest, MAX_BLOB_FRAME};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::farm::{Farm, key, loopback};

/// The rogue's side of a conversation.
pub(crate) struct Talk {
    pub(crate) requests: FrameReceiver<BlobRequest>,
    pub(crate) answers: FrameSender<BlobAnswer>,
}

/// A rogue; gone when it is dropped.
pub(crate) struct Rogue {
    pub(crate) provider: Provider,
    _guard: DropGuard,
}

impl Rogue {
    /// Answers each conversation with this.
    pub(crate) async fn start<F>(farm: &Farm, answer: impl Fn(Talk) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let identity = key();
        let credentials = farm.credentials(identity.peer());
        let plane = TlsPlane::bind(&identity, loopback()).await.expect("a plane");
        let provider = Provider { peer: identity.peer(), addresses: plane.addresses() };
        let stop = CancellationToken::new();
        let serving = serve(plane, credentials, Arc::new(answer));
        tokio::spawn(stop.clone().run_until_cancelled_owned(serving));
        Self { provider, _guard: stop.drop_guard() }
    }
}

async fn serve<F>(
    plane: TlsPlane,
    credentials: Credentials,
    answer: Arc<impl Fn(Talk) -> F + Send + Sync + 'static>,
) where
    F: Future<Output = ()> + Send + 'static,
{
    while let Some(link) = plane.accept().await {
        let (credentials, answer) = (credentials.clone(), Arc::clone(&answer));
        tokio::spawn(async move {
            let Some(Channel { reader, writer }) = link.accept().await else { return };
            // It is in no hurry to keep strangers out.
            link.admit();
            let passed = exchange_hellos(reader, writer, &credentials, link.peer(), Side::Accepted).await;
            if passed.is_err() {
                return;
            }
            while let Some(Channel { reader, writer }) = link.accept().await {
                let requests = FrameReceiver::with_limit(reader, MAX_BLOB_FRAME);
                let answers = FrameSender::with_limit(writer, MAX_BLOB_FRAME);
                tokio::spawn(answer(Talk { requests, answers }));
            }
        });
    }
}
