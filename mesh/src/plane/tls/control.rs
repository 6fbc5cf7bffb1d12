//! The control connection of a link: single bytes, each a heartbeat or a request for a channel.
//!
//! It ends when either side closes the link or is silent for too long, and with it all channels end.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio::time::{interval, timeout};
use tokio_util::sync::CancellationToken;

use super::Connection;

const HEARTBEAT: u8 = b'.';
/// The side that was dialled wants a channel.
const REQUEST: u8 = b'?';
const BEAT_EVERY: Duration = Duration::from_secs(3);
/// When a peer that is gone is noticed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// How many requests of the peer may wait to be carried out.
pub(super) const MAX_REQUESTS: usize = 64;

/// What a control connection works with.
pub(super) struct Control {
    /// Where what the peer requests goes; only the side that dialled has it.
    pub(super) requested: Option<mpsc::Sender<()>>,
    /// What is requested of the peer.
    pub(super) requests: mpsc::Receiver<()>,
    pub(super) closed: CancellationToken,
}

impl Control {
    /// Runs the connection until the link is closed, and closes the link when it ends.
    pub(super) async fn run(self, stream: Connection) {
        let Self { requested, requests, closed } = self;
        let (reader, writer) = tokio::io::split(stream);
        let _close = closed.clone().drop_guard();
        tokio::select! {
            () = closed.cancelled() => {}
            _ = read_all(reader, requested) => {}
            _ = write_all(writer, requests) => {}
        }
    }
}

/// Waits for the heartbeat by which the side that was dialled says that it knows the link.
pub(super) async fn first_beat(stream: &mut Connection) -> io::Result<()> {
    match stream.read_u8().await? {
        HEARTBEAT => Ok(()),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

async fn read_all(mut reader: ReadHalf<Connection>, requested: Option<mpsc::Sender<()>>) -> io::Result<()> {
    loop {
        match timeout(IDLE_TIMEOUT, reader.read_u8()).await?? {
            HEARTBEAT => {}
            // Only the side that dials can open connections, so only it is asked.
            REQUEST => match &requested {
                Some(requested) if requested.try_send(()).is_ok() => {}
                _ => return Err(io::ErrorKind::InvalidData.into()),
            },
            _ => return Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

async fn write_all(mut writer: WriteHalf<Connection>, mut requests: mpsc::Receiver<()>) -> io::Result<()> {
    let mut beats = interval(BEAT_EVERY);
    loop {
        let byte = tokio::select! {
            _ = beats.tick() => HEARTBEAT,
            Some(()) = requests.recv() => REQUEST,
        };
        timeout(IDLE_TIMEOUT, writer.write_all(&[byte])).await??;
        timeout(IDLE_TIMEOUT, writer.flush()).await??;
    }
}
