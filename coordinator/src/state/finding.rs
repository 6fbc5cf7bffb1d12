//! What nodes ask about blobs: who holds one, and what may be read from the internet.
//!
//! Not here: the books that the answers are read from (`nodes`, `aliases`, `origins`, `catalog`).

use std::collections::BTreeSet;

use protocol::message::{
    CoordinatorMessage, KeepPrivate, Locate, Located, MAX_LIST, MAX_PROVIDERS, OriginLease, Provider,
    ReadOrigin,
};
use protocol::{Alias, BlobHash, BlobName, BlobRef, PeerId};

use super::origins::{ORIGIN_LEASE, Share};
use super::{Action, State, Turn};

impl State {
    /// Answers who holds a blob. The driver adds the coordinator itself where its own store has it.
    pub(super) fn locate(&mut self, peer: PeerId, locate: &Locate, turn: &mut Turn) {
        let blob = self.blob_named(&locate.name);
        let shared = blob.filter(|_| !self.is_private(&locate.name));
        let providers = shared.map(|blob| self.nodes.providers(blob, peer)).unwrap_or_default();
        let readers = match locate.name {
            BlobName::Sha256(sha256) if !self.is_private(&locate.name) => self.origins.readers(sha256),
            BlobName::Sha256(_) | BlobName::Blake3(_) => Vec::new(),
        };
        let readers = self.to_providers(readers, peer);
        let located = Located { request: locate.request, blob, providers, readers };
        turn.actions.push(Action::Located { node: peer, name: locate.name, located });
    }

    /// The blob of this name, as far as anybody told. A deployed lockfile's word counts for more than
    /// that of nodes.
    pub(super) fn blob_named(&self, name: &BlobName) -> Option<BlobRef> {
        match name {
            BlobName::Blake3(hash) => self.nodes.blob(*hash).or_else(|| self.catalog.model(*hash)),
            BlobName::Sha256(sha256) => self.catalog.alias(*sha256).or_else(|| self.aliases.get(*sha256)),
        }
    }

    /// The names of what some deployed lockfile says that peers may not have.
    pub fn private(&self) -> impl Iterator<Item = BlobName> {
        self.catalog.private().iter().copied()
    }

    /// Whether some deployed lockfile says that peers may not have it, by whatever name.
    pub fn is_private(&self, name: &BlobName) -> bool {
        let hash = self.hash_named(name);
        self.catalog.private().contains(name) || hash.is_some_and(|hash| self.private_blobs.contains(&hash))
    }

    /// Takes in what a node says of the names of files.
    pub(super) fn aliases_told(&mut self, peer: PeerId, told: &[Alias]) {
        self.aliases.tell(peer, told);
        if told.iter().any(|alias| self.catalog.private().contains(&alias.sha256.into())) {
            self.note_private_blobs();
        }
    }

    /// Notes which blobs are private, after that or whose names they are may have changed.
    pub(super) fn note_private_blobs(&mut self) {
        self.private_blobs = self.private().filter_map(|name| self.hash_named(&name)).collect();
    }

    fn hash_named(&self, name: &BlobName) -> Option<BlobHash> {
        match name {
            BlobName::Blake3(hash) => Some(*hash),
            BlobName::Sha256(_) => self.blob_named(name).map(|blob| blob.hash),
        }
    }

    /// Tells these nodes what none of them may serve: they may hold it, or come to it by themselves.
    pub(super) fn keep_private(&self, nodes: &[PeerId], names: &BTreeSet<BlobName>, turn: &mut Turn) {
        let blobs = names.iter().filter_map(|name| self.blob_named(name)).map(|blob| blob.hash.into());
        let names: Vec<BlobName> =
            names.iter().copied().chain(blobs).collect::<BTreeSet<_>>().into_iter().collect();
        for node in nodes {
            for names in names.chunks(MAX_LIST) {
                let private = KeepPrivate { names: names.to_vec() };
                turn.send(*node, CoordinatorMessage::KeepPrivate(private));
            }
        }
    }

    /// Leases pieces of a file to a node that reads it.
    pub(super) fn read_origin(&mut self, peer: PeerId, asked: &ReadOrigin, turn: &mut Turn) {
        let Share { ranges, readers } = self.origins.read(peer, asked, turn.now.monotonic);
        let readers = self.to_providers(readers, peer);
        let lease = OriginLease { request: asked.request, ranges, duration: ORIGIN_LEASE, readers };
        turn.send(peer, CoordinatorMessage::OriginLease(lease));
    }

    /// How those of these nodes are fetched from that are there.
    fn to_providers(&self, peers: Vec<PeerId>, asking: PeerId) -> Vec<Provider> {
        let provider = |peer| {
            let node = self.nodes.get(peer).filter(|node| node.session.is_some() && peer != asking)?;
            Some(Provider { peer, addresses: node.data_addresses.clone() })
        };
        peers.into_iter().filter_map(provider).take(MAX_PROVIDERS).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use protocol::message::{Aliases, Inventory, NodeMessage};
    use protocol::{FileRef, PIECE_SIZE, PieceRange, Sha256};

    use super::super::Event;
    use super::super::made_farm::{Farm, node, workflow};
    use super::*;

    use crate::view::DeployedWorkflow;

    const SHA256: Sha256 = Sha256([7; 32]);

    fn model() -> BlobRef {
        BlobRef { hash: BlobHash([5; 32]), size: 40 * PIECE_SIZE }
    }

    impl Farm {
        fn hold(&mut self, seed: u8, blob: BlobRef) {
            let inventory = Inventory { complete: false, added: vec![blob], removed: vec![] };
            self.say(seed, NodeMessage::Inventory(inventory));
        }

        /// What a node is told that asks for this blob: the blob, holders, readers.
        fn locate(&mut self, seed: u8, name: BlobName) -> (Option<BlobRef>, Vec<PeerId>, Vec<PeerId>) {
            self.done();
            self.say(seed, NodeMessage::Locate(Locate { request: 3, name }));
            let done = self.done();
            let [Action::Located { node: to, located, .. }] = &done[..] else { panic!("{done:?}") };
            assert_eq!((*to, located.request), (node(seed), 3));
            let peers = |list: &[Provider]| list.iter().map(|provider| provider.peer).collect();
            (located.blob, peers(&located.providers), peers(&located.readers))
        }

        fn read_origin(&mut self, seed: u8, held: u64, wanted: u64) -> OriginLease {
            self.done();
            let file = FileRef { sha256: SHA256, size: model().size };
            let held = vec![PieceRange { first: 0, count: held }];
            self.say(seed, NodeMessage::ReadOrigin(ReadOrigin { request: 4, file, held, wanted }));
            let done = self.done();
            let [Action::Send(to, CoordinatorMessage::OriginLease(lease))] = &done[..] else {
                panic!("{done:?}")
            };
            assert_eq!((*to, lease.request), (node(seed), 4));
            lease.clone()
        }
    }

    #[test]
    fn blob_is_found_by_either_name_with_those_who_are_there_and_not_the_asker() {
        let mut farm = Farm::new();
        (1..=3).for_each(|seed| farm.register(seed));
        let by_hash = BlobName::Blake3(model().hash);
        assert_eq!(farm.locate(3, by_hash), (None, vec![], vec![]));
        (1..=3).for_each(|seed| farm.hold(seed, model()));
        assert_eq!(farm.locate(3, by_hash), (Some(model()), vec![node(1), node(2)], vec![]));
        assert_eq!(farm.locate(3, BlobName::Sha256(SHA256)), (None, vec![], vec![]));
        let aliases = Aliases { aliases: vec![Alias { sha256: SHA256, blob: model() }] };
        farm.say(1, NodeMessage::Aliases(aliases));
        farm.disconnect(1);
        let found = (Some(model()), vec![node(2)], vec![]);
        assert_eq!(farm.locate(3, BlobName::Sha256(SHA256)), found);
    }

    #[test]
    fn what_a_lockfile_keeps_private_is_found_nowhere_and_every_node_hears_of_it() {
        let mut farm = Farm::new();
        (1..=3).for_each(|seed| farm.register(seed));
        (1..=2).for_each(|seed| farm.hold(seed, model()));
        farm.say(1, NodeMessage::Aliases(Aliases { aliases: vec![Alias { sha256: SHA256, blob: model() }] }));
        let (by_hash, by_sha256) = (BlobName::Blake3(model().hash), BlobName::Sha256(SHA256));
        assert_eq!(farm.locate(3, by_hash).1, [node(1), node(2)]);
        farm.read_origin(2, 0, 8);
        farm.done();

        let private = DeployedWorkflow { private: vec![by_sha256], ..(*workflow(1)).clone() };
        farm.apply(Event::Deploy(Arc::new(private)));
        let told = |done: Vec<Action>| -> Vec<(PeerId, Vec<BlobName>)> {
            let private = |action| match action {
                Action::Send(to, CoordinatorMessage::KeepPrivate(private)) => Some((to, private.names)),
                _ => None,
            };
            done.into_iter().filter_map(private).collect()
        };
        // By the other name as well, as far as anybody told it.
        let names = vec![by_hash, by_sha256];
        assert_eq!(told(farm.done()), [1, 2, 3].map(|seed| (node(seed), names.clone())));
        for name in [by_hash, by_sha256] {
            assert_eq!(farm.locate(3, name), (Some(model()), vec![], vec![]));
            assert!(farm.state.is_private(&name));
        }
        farm.apply(Event::Keep { blob: model(), copies: 2, author: Some(node(1)) });
        assert!(
            farm.done().iter().all(|action| !matches!(action, Action::Send(_, CoordinatorMessage::Keep(_))))
        );
        farm.restart();
        farm.register(4);
        assert_eq!(told(farm.done()), [(node(4), vec![by_sha256])]);
    }

    #[test]
    fn blob_is_private_as_long_as_it_is_known_under_a_private_name() {
        let mut farm = Farm::new();
        (1..=3).for_each(|seed| farm.register(seed));
        let private = DeployedWorkflow { private: vec![SHA256.into()], ..(*workflow(1)).clone() };
        farm.apply(Event::Deploy(Arc::new(private.clone())));
        let other = BlobRef { hash: BlobHash([6; 32]), ..model() };
        let are_private = |farm: &Farm| [model(), other].map(|blob| farm.state.is_private(&blob.hash.into()));
        let tell = |farm: &mut Farm, seed: u8, blob: BlobRef| {
            farm.say(seed, NodeMessage::Aliases(Aliases { aliases: vec![Alias { sha256: SHA256, blob }] }));
        };
        assert_eq!(are_private(&farm), [false, false], "nobody knows whose name it is");
        tell(&mut farm, 1, model());
        assert_eq!(are_private(&farm), [true, false]);
        tell(&mut farm, 2, other);
        tell(&mut farm, 3, other);
        assert_eq!(are_private(&farm), [false, true], "most say so");
        [2, 3].into_iter().for_each(|seed| farm.disconnect(seed));
        farm.now += std::time::Duration::from_secs(8 * 24 * 3600);
        farm.pass(1);
        assert_eq!(are_private(&farm), [true, false], "they are forgotten");
        let named = DeployedWorkflow { private: vec![other.hash.into()], ..private };
        farm.apply(Event::Deploy(Arc::new(named)));
        assert_eq!(are_private(&farm), [true, true]);
        farm.restart();
        assert_eq!(are_private(&farm), [false, true], "nodes tell it again");
    }

    #[test]
    fn wrong_size_of_one_node_hides_no_blob() {
        let mut farm = Farm::new();
        (1..=4).for_each(|seed| farm.register(seed));
        farm.hold(1, BlobRef { size: 1, ..model() });
        farm.hold(2, model());
        farm.hold(3, model());
        let found = (Some(model()), vec![node(2), node(3)], vec![]);
        assert_eq!(farm.locate(4, BlobName::Blake3(model().hash)), found);
    }

    #[test]
    fn readers_share_a_file_and_a_lost_ones_pieces_are_leased_again() {
        let mut farm = Farm::new();
        (1..=3).for_each(|seed| farm.register(seed));
        let first = farm.read_origin(1, 0, 8);
        assert_eq!((&first.ranges[..], first.readers), (&[PieceRange { first: 0, count: 8 }][..], vec![]));
        let second = farm.read_origin(2, 0, 8);
        assert_eq!(second.ranges, [PieceRange { first: 8, count: 8 }]);
        assert_eq!(second.readers.iter().map(|reader| reader.peer).collect::<Vec<_>>(), [node(1)]);
        assert_eq!(farm.locate(3, BlobName::Sha256(SHA256)), (None, vec![], vec![node(1), node(2)]));
        farm.disconnect(1);
        assert_eq!(farm.read_origin(3, 0, 4).ranges, [PieceRange { first: 0, count: 4 }]);
        // A node that comes back begins anew.
        farm.register(2);
        assert_eq!(farm.read_origin(3, 4, 4).ranges, [PieceRange { first: 4, count: 4 }]);
    }

    #[test]
    fn lease_that_is_not_renewed_ends() {
        let mut farm = Farm::new();
        (1..=2).for_each(|seed| farm.register(seed));
        farm.read_origin(1, 0, 8);
        farm.pass(19);
        assert_eq!(farm.read_origin(2, 0, 1).ranges, [PieceRange { first: 8, count: 1 }]);
        farm.pass(1);
        assert_eq!(farm.read_origin(2, 0, 2).ranges[0], PieceRange { first: 0, count: 1 });
        farm.pass(60);
        assert_eq!(farm.locate(1, BlobName::Sha256(SHA256)), (None, vec![], vec![]), "nobody reads any more");
    }
}
