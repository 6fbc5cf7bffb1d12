//! The end of one connection that the members-only behaviours have: shut at first, so that the peer is
//! neither spoken to nor answered, and opened once the peer passed the gate.
//!
//! Not here: who is let through, which is `members`'.

use std::fmt;
use std::task::{Context, Poll, ready};

use either::Either;
use libp2p::swarm::handler::ConnectionEvent;
use libp2p::swarm::{ConnectionHandler, ConnectionHandlerEvent, SubstreamProtocol, dummy};

/// Shut, or the handler of the behaviours behind the gate.
type Inside<H> = Either<H, dummy::ConnectionHandler>;

/// A handler that supports no protocol until it is opened. It is never shut again: then the connection is
/// closed.
pub(crate) struct Gated<H> {
    inside: Inside<H>,
    /// That it was opened is still to be told.
    is_news: bool,
}

impl<H> Gated<H> {
    /// A connection to a peer that did not pass the gate yet.
    pub(crate) fn shut() -> Self {
        Self { inside: Either::Right(dummy::ConnectionHandler), is_news: false }
    }
}

/// What a [`Gated`] is told.
pub(crate) enum ToGated<H: ConnectionHandler> {
    /// The peer passed the gate: this handler speaks with it from now on.
    Open(Box<H>),
    /// Something for that handler.
    Inside(H::FromBehaviour),
}

impl<H: ConnectionHandler> fmt::Debug for ToGated<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open(_) => f.write_str("Open"),
            Self::Inside(event) => event.fmt(f),
        }
    }
}

/// What a [`Gated`] tells.
#[derive(Debug)]
pub(crate) enum FromGated<E> {
    /// It is open: the peer is answered from now on.
    Opened,
    /// Something of the handler inside.
    Inside(E),
}

impl<H: ConnectionHandler> ConnectionHandler for Gated<H> {
    type FromBehaviour = ToGated<H>;
    type ToBehaviour = FromGated<H::ToBehaviour>;
    type InboundProtocol = <Inside<H> as ConnectionHandler>::InboundProtocol;
    type OutboundProtocol = <Inside<H> as ConnectionHandler>::OutboundProtocol;
    type InboundOpenInfo = <Inside<H> as ConnectionHandler>::InboundOpenInfo;
    type OutboundOpenInfo = <Inside<H> as ConnectionHandler>::OutboundOpenInfo;

    fn listen_protocol(&self) -> SubstreamProtocol<Self::InboundProtocol, Self::InboundOpenInfo> {
        self.inside.listen_protocol()
    }

    fn on_behaviour_event(&mut self, event: Self::FromBehaviour) {
        match (event, &mut self.inside) {
            (ToGated::Open(handler), Either::Right(_)) => {
                self.inside = Either::Left(*handler);
                self.is_news = true;
            }
            (ToGated::Inside(event), Either::Left(handler)) => handler.on_behaviour_event(event),
            // Nothing is said to a connection that is shut, and it is opened once.
            (ToGated::Inside(_), Either::Right(_)) | (ToGated::Open(_), Either::Left(_)) => {}
        }
    }

    fn connection_keep_alive(&self) -> bool {
        self.inside.connection_keep_alive()
    }

    fn poll(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Self::OutboundProtocol, Self::OutboundOpenInfo, Self::ToBehaviour>> {
        if std::mem::take(&mut self.is_news) {
            return Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(FromGated::Opened));
        }
        self.inside.poll(context).map(|event| event.map_custom(of_inside))
    }

    fn poll_close(&mut self, context: &mut Context<'_>) -> Poll<Option<Self::ToBehaviour>> {
        Poll::Ready(ready!(self.inside.poll_close(context)).map(of_inside))
    }

    /// While it is shut it negotiates no protocol in either direction, so what comes is always for the
    /// handler that is inside by then.
    fn on_connection_event(
        &mut self,
        event: ConnectionEvent<
            Self::InboundProtocol,
            Self::OutboundProtocol,
            Self::InboundOpenInfo,
            Self::OutboundOpenInfo,
        >,
    ) {
        self.inside.on_connection_event(event);
    }
}

fn of_inside<E>(event: Either<E, std::convert::Infallible>) -> FromGated<E> {
    match event {
        Either::Left(event) => FromGated::Inside(event),
        Either::Right(never) => match never {},
    }
}
