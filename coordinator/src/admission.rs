//! Who may come in: the farm's root key, tickets and join requests, renewals, and the keys of the API.
//!
//! Secrets are kept only as BLAKE3 hashes: they are random and long, so nothing slower is needed.
//! Not here: how a request arrives (`net`), and what a key opens (`api`).

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use blake3::Hash;
use data_encoding::BASE32_NOPAD;
use mesh::identity::{Identity, IdentityError};
use protocol::membership::{CoordinatorCertificate, MAX_LABEL, MAX_LABELS, Membership, Role, Signed};
use protocol::message::{Accepted, JoinMessage, JoinRefusal, JoinRequest};
use protocol::ticket::Ticket;
use protocol::{FarmId, PeerId, PublisherKey};
use tracing::{error, info, warn};

use crate::handle::Invitation;
use crate::store::{Admitted, Store, StoreError, StoredTicket, TicketUse};
use crate::view::{KeyScope, KeyView};

/// The beginning of every key of the API.
const KEY_PREFIX: &str = "cfk_";
/// The longest text that is looked at as a key.
const MAX_KEY: usize = 128;
/// The name of the fact that says which farm the store is of.
const FARM: &str = "farm";

/// Why a farm could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum AdmissionError {
    /// A key file.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The root key is not the one with which the farm was made.
    #[error(
        "`root.key` in the data folder is not the root of farm {expected}: put the right one back; \
         without it every member would have to join anew"
    )]
    OtherRoot {
        /// The farm that the store is of.
        expected: String,
    },
    /// The system gave no random bytes.
    #[error("the system gave no random bytes")]
    Random(#[source] getrandom::Error),
}

/// The coordinator's right to admit, and what it needs for that. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Admission {
    store: Store,
    identity: Arc<Identity>,
    root: Arc<Identity>,
    publisher: Arc<Identity>,
    certificate: Signed<CoordinatorCertificate>,
    keys: Arc<Vec<(Hash, KeyView)>>,
}

impl Admission {
    /// Opens the farm of a data folder, or makes one: root key, own key, and, once, the admin key.
    pub(crate) async fn open(
        data: &Path,
        store: Store,
        now: u64,
    ) -> Result<(Self, Option<String>), AdmissionError> {
        let identity = Arc::new(Identity::load_or_create(&data.join("coordinator.key"))?);
        let known_farm = store.fact(FARM).await?;
        let root = data.join("root.key");
        if let Some(expected) = known_farm.clone().filter(|_| !root.exists()) {
            return Err(AdmissionError::OtherRoot { expected });
        }
        let root = Arc::new(Identity::load_or_create(&root)?);
        let publisher = Arc::new(Identity::load_or_create(&data.join("publisher.key"))?);
        let certificate =
            Membership::for_coordinator(root.signing_key(), identity.signing_key(), now).coordinator;
        let farm = certificate.body.farm.to_string();
        match known_farm {
            Some(expected) if expected != farm => return Err(AdmissionError::OtherRoot { expected }),
            Some(_) => {}
            None => store.set_fact(FARM, &farm).await?,
        }
        let first_key = match store.keys().await?.is_empty() {
            true => Some(make_admin_key(&store).await?),
            false => None,
        };
        let keys = store.keys().await?;
        let keys = keys.into_iter().map(|(secret, key)| (Hash::from_bytes(secret), key)).collect();
        Ok((Self { store, identity, root, publisher, certificate, keys: Arc::new(keys) }, first_key))
    }

    /// The farm.
    pub(crate) fn farm(&self) -> FarmId {
        self.certificate.body.farm
    }

    /// The coordinator's own key.
    pub(crate) fn identity(&self) -> &Arc<Identity> {
        &self.identity
    }

    /// The key with which the farm signs what is deployed in it.
    pub(crate) fn publisher(&self) -> &Arc<Identity> {
        &self.publisher
    }

    /// The public half of that key.
    pub(crate) fn publisher_key(&self) -> PublisherKey {
        PublisherKey(self.publisher.peer().0)
    }

    /// The coordinator's own certificates, fresh.
    pub(crate) fn own_membership(&self, now: u64) -> Membership {
        Membership::for_coordinator(self.root.signing_key(), self.identity.signing_key(), now)
    }

    /// Whose key this is. Every stored hash is compared, each in constant time.
    pub(crate) fn authenticate(&self, key: &str) -> Option<KeyView> {
        if key.len() > MAX_KEY {
            return None;
        }
        let presented = blake3::hash(key.as_bytes());
        let mut found = None;
        for (secret, key) in self.keys.iter() {
            // The comparison of `blake3::Hash` takes the same time wherever two differ.
            if *secret == presented {
                found = Some(key.clone());
            }
        }
        found
    }

    /// Makes a ticket.
    pub(crate) async fn invite(
        &self,
        invitation: &Invitation,
        addresses: Vec<String>,
        now: u64,
    ) -> Result<Ticket, AdmissionError> {
        let secret: [u8; 16] = random()?;
        let expires = now.saturating_add(invitation.lifetime.as_secs().max(1));
        let stored = StoredTicket { secret: hash(&secret), expires, uses: invitation.uses };
        self.store.insert_ticket(stored).await?;
        Ok(Ticket::new(self.farm(), self.identity.peer(), addresses, secret, expires))
    }

    /// Answers somebody who wants in, or wants a new certificate.
    pub(crate) async fn answer(&self, peer: PeerId, request: JoinRequest, now: u64) -> JoinMessage {
        match self.decide(peer, request, now).await {
            Ok(Ok(membership)) => {
                info!(peer = %peer.fmt_short(), "peer admitted");
                JoinMessage::Accepted(Box::new(Accepted { membership }))
            }
            Ok(Err(refusal)) => {
                warn!(peer = %peer.fmt_short(), %refusal, "peer not admitted");
                JoinMessage::Refused(refusal)
            }
            Err(error) => {
                error!(%error, "join request could not be answered");
                JoinMessage::Refused(JoinRefusal::Busy)
            }
        }
    }

    async fn decide(
        &self,
        peer: PeerId,
        request: JoinRequest,
        now: u64,
    ) -> Result<Result<Membership, JoinRefusal>, StoreError> {
        if request.farm != self.farm() {
            return Ok(Err(JoinRefusal::WrongFarm));
        }
        let known = self.store.member(peer).await?;
        if known.as_ref().is_some_and(|member| member.revoked) {
            return Ok(Err(JoinRefusal::Revoked));
        }
        let Some(secret) = request.secret else {
            let Some(member) = known else { return Ok(Err(JoinRefusal::UnknownPeer)) };
            return Ok(Ok(self.issue(peer, member.labels, now)));
        };
        let labels = bounded(request.labels);
        // Whatever role was asked for: a ticket admits nodes. Coordinators are made by the root alone.
        let member = Admitted {
            peer,
            role: Role::Node,
            labels: labels.clone(),
            ticket: hash(&secret),
            revoked: false,
        };
        Ok(match self.store.admit(&member, now).await? {
            TicketUse::Good => Ok(self.issue(peer, labels, now)),
            TicketUse::Unknown => Err(JoinRefusal::UnknownTicket),
            TicketUse::Expired => Err(JoinRefusal::Expired),
            TicketUse::UsedUp => Err(JoinRefusal::UsedUp),
        })
    }

    fn issue(&self, peer: PeerId, labels: BTreeMap<String, String>, now: u64) -> Membership {
        Membership::issue(&self.certificate, self.identity.signing_key(), peer, Role::Node, labels, now)
    }
}

async fn make_admin_key(store: &Store) -> Result<String, AdmissionError> {
    let secret: [u8; 32] = random()?;
    let key = format!("{KEY_PREFIX}{}", BASE32_NOPAD.encode(&secret).to_lowercase());
    let view = KeyView { name: "admin".to_owned(), scope: KeyScope::Admin };
    store.insert_key(hash(key.as_bytes()), &view).await?;
    Ok(key)
}

fn hash(secret: &[u8]) -> [u8; 32] {
    *blake3::hash(secret).as_bytes()
}

fn random<const N: usize>() -> Result<[u8; N], AdmissionError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(AdmissionError::Random)?;
    Ok(bytes)
}

/// The labels within their limits; what is beyond them is left out.
fn bounded(labels: BTreeMap<String, String>) -> BTreeMap<String, String> {
    let fits = |(key, value): &(String, String)| key.len() <= MAX_LABEL && value.len() <= MAX_LABEL;
    labels.into_iter().filter(fits).take(MAX_LABELS).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const NOW: u64 = 1_800_000_000;

    struct Desk {
        admission: Admission,
        store: Store,
        _folder: tempfile::TempDir,
    }

    async fn desk() -> Desk {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let store = Store::open(&folder.path().join("store.sqlite")).await.expect("opens");
        let (admission, first_key) = Admission::open(folder.path(), store.clone(), NOW).await.expect("opens");
        assert!(first_key.is_some());
        Desk { admission, store, _folder: folder }
    }

    impl Desk {
        async fn ticket(&self, uses: u32) -> Ticket {
            let invitation = Invitation { uses, lifetime: Duration::from_secs(600) };
            self.admission.invite(&invitation, vec![], NOW).await.expect("makes a ticket")
        }

        async fn ask(&self, seed: u8, secret: Option<[u8; 16]>, now: u64) -> Result<Membership, JoinRefusal> {
            let farm = self.admission.farm();
            let request = JoinRequest { farm, secret, role: Role::Node, labels: BTreeMap::new() };
            match self.admission.answer(PeerId([seed; 32]), request, now).await {
                JoinMessage::Accepted(accepted) => Ok(accepted.membership),
                JoinMessage::Refused(refusal) => Err(refusal),
                JoinMessage::Request(_) => panic!("a request is no answer"),
            }
        }
    }

    #[tokio::test]
    async fn ticket_admits_as_many_as_it_says_and_each_machine_once() {
        let desk = desk().await;
        let secret = Some(desk.ticket(2).await.secret());
        for seed in [1, 1, 2, 1] {
            let membership = desk.ask(seed, secret, NOW).await.expect("admitted");
            assert_eq!(membership.verify(desk.admission.farm(), PeerId([seed; 32]), NOW), Ok(()));
        }
        assert_eq!(desk.ask(3, secret, NOW).await, Err(JoinRefusal::UsedUp));
    }

    #[tokio::test]
    async fn wrong_late_and_foreign_requests_are_refused_with_their_reason() {
        let desk = desk().await;
        let secret = desk.ticket(9).await.secret();
        assert_eq!(desk.ask(1, Some([0; 16]), NOW).await, Err(JoinRefusal::UnknownTicket));
        assert_eq!(desk.ask(1, Some(secret), NOW + 600).await, Err(JoinRefusal::Expired));
        assert_eq!(desk.ask(1, None, NOW).await, Err(JoinRefusal::UnknownPeer));
        let farm = FarmId([9; 32]);
        let request = JoinRequest { farm, secret: Some(secret), role: Role::Node, labels: BTreeMap::new() };
        let answer = desk.admission.answer(PeerId([1; 32]), request, NOW).await;
        assert_eq!(answer, JoinMessage::Refused(JoinRefusal::WrongFarm));
    }

    #[tokio::test]
    async fn member_renews_without_a_ticket_until_it_is_revoked() {
        let desk = desk().await;
        let secret = Some(desk.ticket(1).await.secret());
        desk.ask(1, secret, NOW).await.expect("admitted");
        let later = NOW + 100 * 24 * 3600;
        assert!(desk.ask(1, None, later).await.is_ok());
        desk.store.revoke(PeerId([1; 32])).await.expect("revokes");
        assert_eq!(desk.ask(1, None, later).await, Err(JoinRefusal::Revoked));
        assert_eq!(desk.ask(1, secret, NOW).await, Err(JoinRefusal::Revoked));
    }

    #[tokio::test]
    async fn ticket_never_admits_a_coordinator() {
        let desk = desk().await;
        let secret = Some(desk.ticket(1).await.secret());
        let farm = desk.admission.farm();
        let request = JoinRequest { farm, secret, role: Role::Coordinator, labels: BTreeMap::new() };
        let JoinMessage::Accepted(accepted) = desk.admission.answer(PeerId([1; 32]), request, NOW).await
        else {
            panic!("not admitted")
        };
        assert_eq!(accepted.membership.role(), Role::Node);
    }

    #[tokio::test]
    async fn admin_key_is_made_once_and_opens_for_good() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let store = Store::open(&folder.path().join("store.sqlite")).await.expect("opens");
        let (_, key) = Admission::open(folder.path(), store.clone(), NOW).await.expect("opens");
        let key = key.expect("the first start makes a key");
        let (admission, second) = Admission::open(folder.path(), store, NOW).await.expect("opens again");
        assert_eq!(second, None);
        assert_eq!(admission.authenticate(&key).map(|key| key.scope), Some(KeyScope::Admin));
        for wrong in ["", "cfk_", &key[..key.len() - 1], &key.to_uppercase(), &"x".repeat(200)] {
            assert_eq!(admission.authenticate(wrong), None, "{wrong}");
        }
    }

    #[tokio::test]
    async fn another_or_no_root_key_does_not_silently_make_another_farm() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let store = Store::open(&folder.path().join("store.sqlite")).await.expect("opens");
        Admission::open(folder.path(), store.clone(), NOW).await.expect("opens");
        let root = folder.path().join("root.key");
        std::fs::remove_file(&root).expect("is there");
        let error = Admission::open(folder.path(), store.clone(), NOW).await.err();
        assert!(matches!(error, Some(AdmissionError::OtherRoot { .. })));
        Identity::load_or_create(&root).expect("makes another");
        let error = Admission::open(folder.path(), store, NOW).await.err();
        assert!(matches!(error, Some(AdmissionError::OtherRoot { .. })));
    }
}
