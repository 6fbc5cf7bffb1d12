//! The members-only gate: the first frame each way on every stream and link is a Hello with proof of
//! membership, and before it is valid nothing else is read or answered.
//!
//! Whoever dialled says Hello first; whoever was dialled answers only a valid one, so that a stranger
//! learns nothing, not even which farm it found. Not here: how one becomes a member; that is joining.

use std::collections::BTreeSet;
use std::sync::{Arc, RwLock, RwLockReadGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use protocol::codec::MAX_HELLO;
use protocol::membership::{CLOCK_SKEW, MEMBER_LIFETIME, Membership, MembershipError};
use protocol::message::{GateMessage, HELLO_TIMEOUT, Hello};
use protocol::{FarmId, PeerId};
use tokio::time::timeout;

use crate::frames::{FrameError, FrameReceiver, FrameSender, Reader, Writer};

/// What a process shows at the gate and checks others by. A clone is the same credentials, so a
/// renewed membership is shown everywhere from then on.
#[derive(Clone, Debug)]
pub struct Credentials {
    farm: FarmId,
    peer: PeerId,
    state: Arc<RwLock<State>>,
}

#[derive(Debug)]
struct State {
    membership: Membership,
    revocations: u64,
    revoked: BTreeSet<PeerId>,
}

impl Credentials {
    /// The credentials of this peer in this farm.
    pub fn new(farm: FarmId, peer: PeerId, membership: Membership) -> Self {
        let state = State { membership, revocations: 0, revoked: BTreeSet::new() };
        Self { farm, peer, state: Arc::new(RwLock::new(state)) }
    }

    /// The farm.
    pub fn farm(&self) -> FarmId {
        self.farm
    }

    /// The peer whose credentials these are.
    pub fn peer(&self) -> PeerId {
        self.peer
    }

    /// What is shown.
    pub fn membership(&self) -> Membership {
        self.read().membership.clone()
    }

    /// Shows a renewed membership from now on.
    pub fn replace(&self, membership: Membership) {
        self.state.write().expect("nothing panics while it holds the state").membership = membership;
    }

    /// Refuses these peers from now on. The caller has checked the list's signature; one with a number
    /// that is not higher than the last changes nothing.
    pub fn revoke(&self, number: u64, peers: impl IntoIterator<Item = PeerId>) {
        let mut state = self.state.write().expect("nothing panics while it holds the state");
        if number > state.revocations {
            state.revocations = number;
            state.revoked = peers.into_iter().collect();
        }
    }

    /// Whether a peer was excluded.
    pub fn is_revoked(&self, peer: PeerId) -> bool {
        self.read().revoked.contains(&peer)
    }

    /// Our Hello.
    pub fn hello(&self) -> Hello {
        let state = self.read();
        Hello { membership: state.membership.clone(), revocations: state.revocations }
    }

    /// Checks the Hello of a peer whom the transport has proven, at `now` in seconds since 1970.
    pub fn check(&self, peer: PeerId, hello: &Hello, now: u64) -> Result<Membership, GateError> {
        hello.membership.verify(self.farm, peer, now).map_err(GateError::Membership)?;
        if self.is_revoked(peer) {
            return Err(GateError::Membership(MembershipError::Revoked));
        }
        Ok(hello.membership.clone())
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().expect("nothing panics while it holds the state")
    }
}

/// Why a peer was not let through, or did not let us through.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    /// It presents no valid membership of our farm.
    #[error("the peer presents a {0}")]
    Membership(MembershipError),
    /// It closed the stream without a Hello. A member does so when our own membership is not valid for it.
    #[error("the peer closed the connection without a Hello: it may not accept our membership")]
    Closed,
    /// It said something else than Hello, or too much.
    #[error("the peer does not say Hello")]
    NoHello(#[source] FrameError),
    /// It said nothing in time.
    #[error("the peer said no Hello within {} s", HELLO_TIMEOUT.as_secs())]
    Timeout,
}

/// Which end of a connection this is: the one that dialled says Hello first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// This end opened it.
    Dialled,
    /// This end was dialled.
    Accepted,
}

/// Passes the gate on a fresh stream with this peer, whom the transport has proven, and gives the stream
/// back with what the peer presented.
pub async fn exchange_hellos(
    reader: Reader,
    writer: Writer,
    credentials: &Credentials,
    peer: PeerId,
    side: Side,
) -> Result<(Reader, Writer, Membership), GateError> {
    exchange_hellos_and(reader, writer, credentials, peer, side, || {}).await
}

/// As [`exchange_hellos`]; `passed` is called as soon as the peer has proven its membership, and before it
/// hears that it may go on.
pub(crate) async fn exchange_hellos_and(
    reader: Reader,
    writer: Writer,
    credentials: &Credentials,
    peer: PeerId,
    side: Side,
    passed: impl FnOnce(),
) -> Result<(Reader, Writer, Membership), GateError> {
    let mut receiver = FrameReceiver::with_limit(reader, MAX_HELLO);
    let mut sender = FrameSender::with_limit(writer, MAX_HELLO);
    let exchange = async {
        let ours = GateMessage::Hello(credentials.hello());
        if side == Side::Dialled {
            sender.send(&ours).await.map_err(closed_or_else)?;
        }
        let GateMessage::Hello(theirs) =
            receiver.recv().await.map_err(closed_or_else)?.ok_or(GateError::Closed)?;
        let membership = credentials.check(peer, &theirs, now())?;
        passed();
        if side == Side::Accepted {
            sender.send(&ours).await.map_err(closed_or_else)?;
        }
        Ok(membership)
    };
    let membership = timeout(HELLO_TIMEOUT, exchange).await.unwrap_or(Err(GateError::Timeout))?;
    Ok((receiver.into_inner(), sender.into_inner(), membership))
}

fn closed_or_else(error: FrameError) -> GateError {
    match error {
        FrameError::Io(_) | FrameError::Cut => GateError::Closed,
        FrameError::Codec(_) | FrameError::Expired => GateError::NoHello(error),
    }
}

/// The longest that a connection lasts, whatever its certificates say.
const LONGEST: Duration = Duration::from_secs(MEMBER_LIFETIME + 2 * CLOCK_SKEW);

/// How long a connection may last on the strength of this membership, from now.
pub(crate) fn remaining(membership: &Membership) -> Duration {
    let end = membership.member.body.expires.min(membership.coordinator.body.expires);
    Duration::from_secs(end.saturating_add(CLOCK_SKEW).saturating_sub(now())).min(LONGEST)
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use ed25519_dalek::SigningKey;
    use protocol::membership::Role;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex, split};

    use super::*;

    fn key(seed: u8) -> SigningKey {
        SigningKey::from_bytes(&[seed; 32])
    }

    fn peer(seed: u8) -> PeerId {
        PeerId(key(seed).verifying_key().to_bytes())
    }

    /// A member of the farm with this root, admitted at `issued`.
    fn credentials(root: u8, member: u8, issued: u64) -> Credentials {
        let coordinator = Membership::for_coordinator(&key(root), &key(2), issued).coordinator;
        let membership =
            Membership::issue(&coordinator, &key(2), peer(member), Role::Node, BTreeMap::new(), issued);
        Credentials::new(FarmId(key(root).verifying_key().to_bytes()), peer(member), membership)
    }

    /// What the one who was dialled says to these credentials, and how many bytes it answered.
    async fn knock(dialler: Credentials) -> (Result<Membership, GateError>, usize) {
        let (near, far) = duplex(64 << 10);
        let (reader, writer) = split(far);
        let host = credentials(1, 4, now());
        let hello = GateMessage::Hello(dialler.hello());
        let (mut answers, near_writer) = split(near);
        let mut sender = FrameSender::<GateMessage>::new(Box::new(near_writer));
        sender.send(&hello).await.expect("there is room");
        let result =
            exchange_hellos(Box::new(reader), Box::new(writer), &host, dialler.peer(), Side::Accepted).await;
        let result = result.map(|(_, _, membership)| membership);
        drop(sender);
        let mut answered = Vec::new();
        answers.read_to_end(&mut answered).await.expect("the other end is closed");
        (result, answered.len())
    }

    #[tokio::test]
    async fn members_pass_each_other() {
        let (near, far) = duplex(64 << 10);
        let (one, other) = (credentials(1, 3, now()), credentials(1, 4, now()));
        let ((r1, w1), (r2, w2)) = (split(near), split(far));
        let dialled = exchange_hellos(Box::new(r1), Box::new(w1), &one, peer(4), Side::Dialled);
        let accepted = exchange_hellos(Box::new(r2), Box::new(w2), &other, peer(3), Side::Accepted);
        let (dialled, accepted) = tokio::join!(dialled, accepted);
        assert_eq!(dialled.map(|passed| passed.2.peer()).ok(), Some(peer(4)));
        assert_eq!(accepted.map(|passed| passed.2.peer()).ok(), Some(peer(3)));
    }

    #[tokio::test]
    async fn wrong_farm_and_expired_membership_get_no_answer() {
        let (wrong_farm, answered) = knock(credentials(9, 3, now())).await;
        assert!(matches!(wrong_farm, Err(GateError::Membership(MembershipError::WrongFarm))));
        assert_eq!(answered, 0);
        let old = now() - MEMBER_LIFETIME - CLOCK_SKEW - 1;
        let (expired, answered) = knock(credentials(1, 3, old)).await;
        assert!(matches!(expired, Err(GateError::Membership(MembershipError::Expired))), "{expired:?}");
        assert_eq!(answered, 0);
    }

    #[tokio::test]
    async fn stranger_and_oversized_hello_get_no_answer() {
        let mut oversized = (MAX_HELLO as u32 + 1).to_le_bytes().to_vec();
        oversized.extend_from_slice(&[1, 0]);
        for knock in [b"GET / HTTP/1.1\r\n\r\n".to_vec(), oversized] {
            let (mut near, far) = duplex(64 << 10);
            let (reader, writer) = split(far);
            near.write_all(&knock).await.expect("there is room");
            let host = credentials(1, 4, now());
            let result =
                exchange_hellos(Box::new(reader), Box::new(writer), &host, peer(3), Side::Accepted).await;
            assert!(matches!(result, Err(GateError::NoHello(_))));
            let mut answered = Vec::new();
            near.read_to_end(&mut answered).await.expect("the other end is closed");
            assert!(answered.is_empty());
        }
    }

    #[test]
    fn connection_lasts_as_long_as_its_certificate_and_no_longer() {
        let issued = |at: u64| remaining(&credentials(1, 3, at).membership()).as_secs();
        let whole = MEMBER_LIFETIME + CLOCK_SKEW;
        assert!((whole - 10..=whole).contains(&issued(now())));
        assert_eq!(issued(now() - whole - 1), 0);
        assert_eq!(issued(now() + 10 * MEMBER_LIFETIME), LONGEST.as_secs());
    }

    #[test]
    fn borrowed_membership_and_revoked_peer_are_refused() {
        let (host, guest) = (credentials(1, 4, now()), credentials(1, 3, now()));
        let borrowed = host.check(peer(5), &guest.hello(), now());
        assert!(matches!(borrowed, Err(GateError::Membership(MembershipError::WrongPeer))));
        host.revoke(1, [peer(3)]);
        host.revoke(1, []);
        let revoked = host.check(peer(3), &guest.hello(), now());
        assert!(matches!(revoked, Err(GateError::Membership(MembershipError::Revoked))));
    }
}
