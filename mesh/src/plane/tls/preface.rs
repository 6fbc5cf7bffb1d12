//! The first bytes of each connection: what it is for, and which link it belongs to.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The name of a link, made at random by the side that dials.
pub(in crate::plane) type LinkId = [u8; 16];

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::plane) enum Purpose {
    /// It begins a link.
    Control,
    /// A channel of the side that dialled.
    Asked,
    /// A channel that the side that was dialled has requested.
    Lent,
}

/// One byte of purpose, 16 of the link's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::plane) struct Preface {
    pub(in crate::plane) purpose: Purpose,
    pub(in crate::plane) link: LinkId,
}

impl Preface {
    pub(in crate::plane) async fn write(self, stream: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        let mut bytes = [0; 17];
        bytes[0] = match self.purpose {
            Purpose::Control => 0,
            Purpose::Asked => 1,
            Purpose::Lent => 2,
        };
        bytes[1..].copy_from_slice(&self.link);
        stream.write_all(&bytes).await?;
        stream.flush().await
    }

    pub(in crate::plane) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Self> {
        let mut bytes = [0; 17];
        stream.read_exact(&mut bytes).await?;
        let [purpose, link @ ..] = bytes;
        let purpose = match purpose {
            0 => Purpose::Control,
            1 => Purpose::Asked,
            2 => Purpose::Lent,
            _ => return Err(io::ErrorKind::InvalidData.into()),
        };
        Ok(Self { purpose, link })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn preface_is_17_bytes_and_an_unknown_purpose_is_refused() {
        let preface = Preface { purpose: Purpose::Lent, link: [7; 16] };
        let mut bytes = Vec::new();
        preface.write(&mut bytes).await.expect("a vector takes all");
        assert_eq!(bytes, [vec![2], vec![7; 16]].concat());
        assert_eq!(Preface::read(&mut bytes.as_slice()).await.expect("reads"), preface);
        bytes[0] = 3;
        assert!(Preface::read(&mut bytes.as_slice()).await.is_err());
    }
}
