//! Who belongs to a farm: the chain of two certificates from the farm's root to a member.
//!
//! A farm is an ed25519 root key. The root signs a coordinator's certificate; a coordinator signs
//! members' (a coordinator also signs its own). Each is signed over its canonical JSON (RFC 8785) behind
//! a text that names what it is, so that a signature for one purpose never passes for another.
//! Where keys are kept and what is presented when is the mesh's.

use std::collections::BTreeMap;

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};

use crate::id::{FarmId, PeerId};

/// How long a member's certificate lives, in seconds: 24 hours. It is renewed at half.
pub const MEMBER_LIFETIME: u64 = 24 * 3600;
/// How long a coordinator's certificate lives, in seconds: a year, for the root key may lie in a safe.
pub const COORDINATOR_LIFETIME: u64 = 365 * 24 * 3600;
/// How far two clocks may differ, in seconds: two hours.
pub const CLOCK_SKEW: u64 = 2 * 3600;
/// The most labels that a member carries.
pub const MAX_LABELS: usize = 16;
/// The longest key or value of a label, in bytes.
pub const MAX_LABEL: usize = 64;

/// What a member may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Takes jobs and grants leases.
    Coordinator,
    /// Lends GPUs.
    Node,
}

/// A certificate and the signature over its canonical JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signed<T> {
    /// What is signed.
    pub body: T,
    /// 64 bytes, as two halves because serde's arrays end at 32.
    signature: ([u8; 32], [u8; 32]),
}

/// What a signature is for; its text stands before the signed bytes.
pub trait Purpose: Serialize {
    /// The text, ending in a newline.
    const CONTEXT: &'static str;
}

impl<T: Purpose> Signed<T> {
    /// Signs a body.
    pub fn new(body: T, key: &SigningKey) -> Self {
        let bytes = key.sign(&signed_bytes(&body)).to_bytes();
        let (first, second) = bytes.split_at(32);
        let half = |part: &[u8]| part.try_into().expect("a half of 64 bytes is 32");
        Self { signature: (half(first), half(second)), body }
    }

    fn is_signed_by(&self, key: &[u8; 32]) -> bool {
        let signature = [self.signature.0, self.signature.1].concat();
        let (Ok(key), Ok(signature)) = (VerifyingKey::from_bytes(key), Signature::from_slice(&signature))
        else {
            return false;
        };
        key.verify_strict(&signed_bytes(&self.body), &signature).is_ok()
    }
}

fn signed_bytes<T: Purpose>(body: &T) -> Vec<u8> {
    let mut bytes = T::CONTEXT.as_bytes().to_vec();
    bytes.extend(
        serde_json_canonicalizer::to_vec(body).expect("certificates have only text keys and numbers"),
    );
    bytes
}

/// The root's word that a peer coordinates the farm.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoordinatorCertificate {
    /// The format's version: 1.
    pub format: u32,
    /// The farm.
    pub farm: FarmId,
    /// The coordinator.
    pub peer: PeerId,
    /// Not valid before, in seconds since 1970.
    pub issued: u64,
    /// Not valid from, in seconds since 1970.
    pub expires: u64,
}

impl Purpose for CoordinatorCertificate {
    const CONTEXT: &'static str = "comfy-farm coordinator certificate\n";
}

/// A coordinator's word that a peer is a member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberCertificate {
    /// The format's version: 1.
    pub format: u32,
    /// The farm.
    pub farm: FarmId,
    /// The member.
    pub peer: PeerId,
    /// What it may do.
    pub role: Role,
    /// Labels for people and placement.
    pub labels: BTreeMap<String, String>,
    /// Not valid before, in seconds since 1970.
    pub issued: u64,
    /// Not valid from, in seconds since 1970.
    pub expires: u64,
}

impl Purpose for MemberCertificate {
    const CONTEXT: &'static str = "comfy-farm member certificate\n";
}

/// The chain that a member presents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// Signed by the farm's root.
    pub coordinator: Signed<CoordinatorCertificate>,
    /// Signed by that coordinator.
    pub member: Signed<MemberCertificate>,
}

/// Peers that are members no longer, signed by a coordinator; a higher number replaces a lower one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevocationList {
    /// The format's version: 1.
    pub format: u32,
    /// The farm.
    pub farm: FarmId,
    /// Counts up from 1.
    pub number: u64,
    /// The peers.
    pub peers: Vec<PeerId>,
}

impl Purpose for RevocationList {
    const CONTEXT: &'static str = "comfy-farm revocation list\n";
}

/// Why a chain proves no membership.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MembershipError {
    /// It was written by a later release.
    #[error("certificate of an unknown format")]
    Format,
    /// It is for another farm.
    #[error("certificate of another farm")]
    WrongFarm,
    /// It is for another peer than the one that presents it.
    #[error("certificate of another peer")]
    WrongPeer,
    /// A signature does not match.
    #[error("certificate with a wrong signature")]
    Signature,
    /// It is too early.
    #[error("certificate is not valid yet; compare the clocks of both machines")]
    NotYetValid,
    /// It is too late.
    #[error("certificate has expired")]
    Expired,
    /// The peer was excluded.
    #[error("certificate of a revoked peer")]
    Revoked,
}

impl Membership {
    /// The certificates of a farm's coordinator itself: signed by the root, then by its own key.
    pub fn for_coordinator(root: &SigningKey, coordinator: &SigningKey, now: u64) -> Self {
        let farm = FarmId(root.verifying_key().to_bytes());
        let peer = PeerId(coordinator.verifying_key().to_bytes());
        let body = CoordinatorCertificate {
            format: 1,
            farm,
            peer,
            issued: now,
            expires: now + COORDINATOR_LIFETIME,
        };
        let certificate = Signed::new(body, root);
        Self::issue(&certificate, coordinator, peer, Role::Coordinator, BTreeMap::new(), now)
    }

    /// The certificates of a member whom this coordinator admits.
    pub fn issue(
        certificate: &Signed<CoordinatorCertificate>,
        coordinator: &SigningKey,
        peer: PeerId,
        role: Role,
        labels: BTreeMap<String, String>,
        now: u64,
    ) -> Self {
        let farm = certificate.body.farm;
        let expires = now + MEMBER_LIFETIME;
        let body = MemberCertificate { format: 1, farm, peer, role, labels, issued: now, expires };
        Self { coordinator: certificate.clone(), member: Signed::new(body, coordinator) }
    }

    /// Checks the whole chain for `peer`, whom the transport has proven, at `now` in seconds since 1970.
    pub fn verify(&self, farm: FarmId, peer: PeerId, now: u64) -> Result<(), MembershipError> {
        let (coordinator, member) = (&self.coordinator.body, &self.member.body);
        if coordinator.format != 1 || member.format != 1 {
            return Err(MembershipError::Format);
        }
        if coordinator.farm != farm || member.farm != farm {
            return Err(MembershipError::WrongFarm);
        }
        if member.peer != peer || (member.role == Role::Coordinator && coordinator.peer != peer) {
            return Err(MembershipError::WrongPeer);
        }
        if !self.coordinator.is_signed_by(&farm.0) || !self.member.is_signed_by(&coordinator.peer.0) {
            return Err(MembershipError::Signature);
        }
        for (issued, expires) in [(coordinator.issued, coordinator.expires), (member.issued, member.expires)]
        {
            if now.saturating_add(CLOCK_SKEW) < issued {
                return Err(MembershipError::NotYetValid);
            }
            if now >= expires.saturating_add(CLOCK_SKEW) {
                return Err(MembershipError::Expired);
            }
        }
        Ok(())
    }

    /// Whom it is about.
    pub fn peer(&self) -> PeerId {
        self.member.body.peer
    }

    /// What the member may do.
    pub fn role(&self) -> Role {
        self.member.body.role
    }

    /// Whether half of its life is over, so that it should be renewed.
    pub fn is_past_half(&self, now: u64) -> bool {
        let MemberCertificate { issued, expires, .. } = self.member.body;
        now >= issued + expires.saturating_sub(issued) / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn key(seed: u8) -> SigningKey {
        SigningKey::from_bytes(&[seed; 32])
    }

    fn peer(seed: u8) -> PeerId {
        PeerId(key(seed).verifying_key().to_bytes())
    }

    fn farm(seed: u8) -> FarmId {
        FarmId(key(seed).verifying_key().to_bytes())
    }

    /// Root 1, coordinator 2, member 3.
    fn member() -> Membership {
        let coordinator = Membership::for_coordinator(&key(1), &key(2), NOW).coordinator;
        Membership::issue(&coordinator, &key(2), peer(3), Role::Node, BTreeMap::new(), NOW)
    }

    #[test]
    fn chain_of_two_proves_a_member_and_the_coordinator_itself() {
        assert_eq!(member().verify(farm(1), peer(3), NOW), Ok(()));
        let coordinator = Membership::for_coordinator(&key(1), &key(2), NOW);
        assert_eq!(coordinator.verify(farm(1), peer(2), NOW), Ok(()));
    }

    #[test]
    fn wrong_farm_wrong_peer_and_altered_roles_are_refused() {
        assert_eq!(member().verify(farm(9), peer(3), NOW), Err(MembershipError::WrongFarm));
        assert_eq!(member().verify(farm(1), peer(4), NOW), Err(MembershipError::WrongPeer));
        let mut altered = member();
        altered.member.body.labels.insert("room".into(), "2".into());
        assert_eq!(altered.verify(farm(1), peer(3), NOW), Err(MembershipError::Signature));
        let mut raised = member();
        raised.member.body.role = Role::Coordinator;
        assert_eq!(raised.verify(farm(1), peer(3), NOW), Err(MembershipError::WrongPeer));
    }

    #[test]
    fn member_cannot_sign_for_others() {
        let member = member();
        let forged =
            Membership::issue(&member.coordinator, &key(3), peer(4), Role::Node, BTreeMap::new(), NOW);
        assert_eq!(forged.verify(farm(1), peer(4), NOW), Err(MembershipError::Signature));
        let self_made = Membership::for_coordinator(&key(5), &key(6), NOW);
        assert_eq!(self_made.verify(farm(1), peer(6), NOW), Err(MembershipError::WrongFarm));
    }

    #[test]
    fn certificate_lives_a_day_with_two_hours_of_skew() {
        let end = NOW + MEMBER_LIFETIME;
        assert_eq!(member().verify(farm(1), peer(3), end + CLOCK_SKEW - 1), Ok(()));
        assert_eq!(member().verify(farm(1), peer(3), end + CLOCK_SKEW), Err(MembershipError::Expired));
        assert_eq!(member().verify(farm(1), peer(3), NOW - CLOCK_SKEW), Ok(()));
        let early = member().verify(farm(1), peer(3), NOW - CLOCK_SKEW - 1);
        assert_eq!(early, Err(MembershipError::NotYetValid));
        assert!(member().is_past_half(NOW + MEMBER_LIFETIME / 2));
    }
}
