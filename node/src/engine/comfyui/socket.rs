//! The WebSocket on which ComfyUI tells what happens to our prompt.
//!
//! Not here: what the messages mean (`events.rs`, `session.rs`), and when to connect again (`watch.rs`).

use std::time::Duration;

use futures::StreamExt;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self, Message as Frame};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

use super::client::{Client, Link};
use super::events::{self, Message};

/// The largest message that is read. Previews have some 100 KiB; SaveImageWebsocket sends whole pictures.
const MAX_MESSAGE: usize = 64 << 20;
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// One connection.
pub(super) struct Socket(WebSocketStream<Box<dyn Link>>);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    /// Nobody accepts it.
    #[error("the WebSocket of ComfyUI at `{url}` does not open")]
    Refused {
        /// ComfyUI's address.
        url: String,
        /// What the connection came to.
        #[source]
        source: Box<tungstenite::Error>,
    },
    /// It takes too long.
    #[error("the WebSocket of ComfyUI at `{url}` does not open within {CONNECT_WITHIN:?}")]
    TimedOut {
        /// ComfyUI's address.
        url: String,
    },
}

impl Socket {
    /// Connects as the client of that id. Events of prompts that it queues come here and nowhere else.
    pub(super) async fn connect(client: &Client, client_id: &str) -> Result<Self, ConnectError> {
        let limits =
            WebSocketConfig::default().max_message_size(Some(MAX_MESSAGE)).max_frame_size(Some(MAX_MESSAGE));
        let connecting = async {
            let link = client.connect().await?;
            client_async_with_config(client.socket_address(client_id), link, Some(limits)).await
        };
        let url = || client.address().to_owned();
        match tokio::time::timeout(CONNECT_WITHIN, connecting).await {
            Ok(Ok((stream, _))) => Ok(Self(stream)),
            Ok(Err(source)) => Err(ConnectError::Refused { url: url(), source: Box::new(source) }),
            Err(_) => Err(ConnectError::TimedOut { url: url() }),
        }
    }

    /// The next message that is understood; none once the connection is lost. May be dropped and
    /// called again.
    pub(super) async fn next(&mut self) -> Option<Message> {
        loop {
            let message = match self.0.next().await? {
                Ok(Frame::Text(text)) => events::from_text(text.as_str()),
                Ok(Frame::Binary(bytes)) => events::from_binary(&bytes),
                Ok(Frame::Close(_)) => return None,
                Ok(_) => None,
                Err(error) => {
                    tracing::debug!(%error, "websocket of comfyui lost");
                    return None;
                }
            };
            if message.is_some() {
                return message;
            }
        }
    }
}
