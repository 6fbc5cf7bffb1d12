//! What nodes tell of their stores and transfers, and what is seen to with that: that blobs are kept, and
//! what people are shown of a blob.
//!
//! Not here: which nodes are asked to keep a blob (`keeps`).

use protocol::message::{
    AUTHOR_LABEL, CoordinatorMessage, Keep, KeepRefused, MAX_LIST, NodeMessage, Storage,
};
use protocol::{BlobName, BlobRef, MAX_WORDS, PIECE_SIZE, PeerId, Transfers};

use super::keeps::{Candidate, Standing};
use super::nodes::Node;
use super::{State, Turn};
use crate::view::{BlobHolder, BlobPart, BlobUse, BlobView, FarmEventKind, KeepView};

impl State {
    /// Takes in what a node tells of its store and its transfers.
    pub(super) fn hear_of_stock(&mut self, peer: PeerId, message: NodeMessage, turn: &mut Turn) {
        match message {
            NodeMessage::Storage(storage) => self.store_told(peer, storage),
            NodeMessage::Transfers(transfers) => self.transfers_told(peer, transfers, turn),
            NodeMessage::KeepRefused(refused) => self.keep_refused(peer, refused, turn),
            _ => {}
        }
    }

    fn store_told(&mut self, peer: PeerId, storage: Storage) {
        let Some(node) = self.nodes.get_mut(peer) else { return };
        node.room = storage.room;
        node.pinned = storage.pinned.into_iter().take(MAX_LIST).collect();
    }

    fn transfers_told(&mut self, peer: PeerId, transfers: Transfers, turn: &mut Turn) {
        let Some(node) = self.nodes.get_mut(peer) else { return };
        node.transfers = transfers.bounded();
        turn.notify(FarmEventKind::NodeChanged(peer));
    }

    fn keep_refused(&mut self, peer: PeerId, refused: KeepRefused, turn: &mut Turn) {
        let mut reason = refused.reason;
        reason.truncate(reason.floor_char_boundary(MAX_WORDS));
        self.keeps.refused(peer, refused.blob, reason, turn.now.monotonic);
        self.keep_wished(turn);
    }

    /// Somebody wishes that nodes keep a blob. One that its lockfile says is not to be shared is not kept.
    pub(super) fn keep(&mut self, blob: BlobRef, copies: usize, author: Option<PeerId>, turn: &mut Turn) {
        let is_private = self.is_private(&blob.hash.into());
        if !is_private && self.keeps.wish(blob, copies, author, turn.now.monotonic) {
            self.keep_wished(turn);
        }
    }

    /// Asks nodes to keep what is wished, wherever there are too few.
    pub(super) fn keep_wished(&mut self, turn: &mut Turn) {
        let now = turn.now.monotonic;
        for blob in self.keeps.wished(now) {
            // Its author's inventory may still be on the way; who is asked too early only refuses.
            if !self.nodes.is_served(blob) || self.is_private(&blob.hash.into()) {
                continue;
            }
            let there = self.nodes.iter().filter(|(_, node)| node.session.is_some() && !node.leaving);
            let there = there.filter(|(_, node)| !is_author(node));
            let candidates: Vec<Candidate> =
                there.map(|(peer, node)| to_candidate(peer, node, blob)).collect();
            for peer in self.keeps.plan(blob, &candidates, now) {
                let providers = self.nodes.providers(blob, peer);
                turn.send(peer, CoordinatorMessage::Keep(Keep { blob, providers }));
            }
        }
    }

    /// All that is known of a blob; the driver adds whether the coordinator's own store has it.
    pub fn blob_view(&self, name: &BlobName) -> BlobView {
        let blob = self.blob_named(name);
        let sha256 = match (name, blob) {
            (BlobName::Sha256(sha256), _) => Some(*sha256),
            (BlobName::Blake3(_), blob) => blob.and_then(|blob| self.aliases.sha256_of(blob)),
        };
        let holders = blob.map(|blob| self.holders(blob)).unwrap_or_default();
        let mut parts: Vec<BlobPart> =
            self.nodes.iter().filter_map(|(peer, node)| part(peer, node, name, blob)).collect();
        for (peer, held, of) in sha256.map(|sha256| self.origins.progress(sha256)).unwrap_or_default() {
            let is_new = !parts.iter().any(|part| part.peer == peer) && held < of;
            let host_name = self.nodes.get(peer).map(|node| node.offer.host_name.clone()).unwrap_or_default();
            if is_new {
                parts.push(BlobPart { peer, host_name, here: held * PIECE_SIZE, size: of * PIECE_SIZE });
            }
        }
        let keep = blob.and_then(|blob| self.keeps.standing(blob.hash));
        let keep = keep.map(|Standing { copies, refused }| KeepView { copies: copies as u64, refused });
        let is_it = |model: &&protocol::LockedModel| {
            model.sha256.is_some() && model.sha256 == sha256
                || model.blob.is_some() && model.blob == blob.map(|blob| blob.hash)
        };
        let workflows = self.catalog.list();
        let used_by = workflows.iter().flat_map(|workflow| {
            let models = workflow.models.iter().filter(is_it);
            models.map(|model| BlobUse { workflow: workflow.id.clone(), path: model.path.to_string() })
        });
        BlobView { blob, sha256, holders, parts, in_coordinator: false, used_by: used_by.collect(), keep }
    }

    fn holders(&self, blob: BlobRef) -> Vec<BlobHolder> {
        let holder = |(peer, node): (PeerId, &Node)| BlobHolder {
            peer,
            host_name: node.offer.host_name.clone(),
            connected: node.session.is_some(),
            pinned: node.pinned.contains(&blob.hash),
        };
        self.nodes.iter().filter(|(_, node)| node.blobs.contains(&blob.hash)).map(holder).collect()
    }
}

/// Whether it only serves an author's models, and leaves with them.
fn is_author(node: &Node) -> bool {
    let (key, value) = AUTHOR_LABEL;
    node.labels.get(key).is_some_and(|label| label == value)
}

fn to_candidate(peer: PeerId, node: &Node, blob: BlobRef) -> Candidate {
    let is_it = |name: &BlobName| *name == BlobName::Blake3(blob.hash);
    let holds = node.blobs.contains(&blob.hash);
    Candidate {
        peer,
        room: node.room,
        holds,
        pinned: holds && node.pinned.contains(&blob.hash),
        fetches: node.transfers.transfers.iter().any(|transfer| is_it(&transfer.name)),
    }
}

/// What a node has of a blob that it is fetching.
fn part(peer: PeerId, node: &Node, name: &BlobName, blob: Option<BlobRef>) -> Option<BlobPart> {
    let is_it =
        |other: &BlobName| other == name || blob.is_some_and(|blob| *other == BlobName::Blake3(blob.hash));
    let transfer = node.transfers.transfers.iter().find(|transfer| is_it(&transfer.name))?;
    node.session?;
    let host_name = node.offer.host_name.clone();
    Some(BlobPart { peer, host_name, here: transfer.here, size: transfer.size })
}

#[cfg(test)]
mod tests {
    use protocol::message::Inventory;
    use protocol::{BlobHash, Transfer};

    use super::super::made_farm::{Farm, node, workflow};
    use super::super::{Action, Event};
    use super::*;
    use crate::view::DeployedWorkflow;

    fn model() -> BlobRef {
        BlobRef { hash: BlobHash([5; 32]), size: 40 * PIECE_SIZE }
    }

    impl Farm {
        fn hold_model(&mut self, seed: u8) {
            let inventory = Inventory { complete: false, added: vec![model()], removed: vec![] };
            self.say(seed, NodeMessage::Inventory(inventory));
        }

        fn tell_storage(&mut self, seed: u8, room: u64, pinned: Vec<BlobHash>) {
            self.say(seed, NodeMessage::Storage(Storage { room, pinned }));
        }

        /// Who was asked to keep the model since this was last asked, and from whom.
        fn asked(&mut self) -> Vec<(PeerId, Vec<PeerId>)> {
            let peers = |keep: Keep| keep.providers.iter().map(|provider| provider.peer).collect();
            let asked = |action| match action {
                Action::Send(to, CoordinatorMessage::Keep(keep)) => Some((to, peers(keep))),
                _ => None,
            };
            self.done().into_iter().filter_map(asked).collect()
        }
    }

    #[test]
    fn authors_model_is_kept_by_two_others_and_a_refusal_moves_on() {
        let mut farm = Farm::new();
        (1..=4).for_each(|seed| farm.register(seed));
        (2..=4).for_each(|seed| farm.tell_storage(seed, u64::from(seed) << 40, vec![]));
        let wish = || Event::Keep { blob: model(), copies: 2, author: Some(node(1)) };
        farm.apply(wish());
        assert_eq!(farm.asked(), [], "nobody is known to hold it yet");
        farm.hold_model(1);
        farm.pass(1);
        assert_eq!(farm.asked(), [(node(4), vec![node(1)]), (node(3), vec![node(1)])]);
        let refused = KeepRefused { blob: model().hash, reason: "x".repeat(1000) };
        farm.say(4, NodeMessage::KeepRefused(refused));
        assert_eq!(farm.asked(), [(node(2), vec![node(1)])]);
        for seed in [2, 3] {
            farm.hold_model(seed);
            farm.tell_storage(seed, 1 << 40, vec![model().hash]);
        }
        farm.apply(wish());
        farm.pass(1);
        assert_eq!(farm.asked(), []);
        let view = farm.state.blob_view(&BlobName::Blake3(model().hash));
        let pinned: Vec<_> =
            view.holders.iter().filter(|holder| holder.pinned).map(|holder| holder.peer).collect();
        assert_eq!(pinned, [node(2), node(3)]);
        assert_eq!(view.keep.expect("it is wished").refused[0].1.len(), MAX_WORDS);
        // One of them goes, and another takes its place.
        farm.disconnect(3);
        farm.register(5);
        farm.tell_storage(5, 1 << 40, vec![]);
        farm.pass(1);
        assert_eq!(farm.asked(), [(node(5), vec![node(1), node(2)])]);
    }

    #[test]
    fn model_that_is_not_to_be_shared_is_not_kept() {
        let mut farm = Farm::new();
        (1..=2).for_each(|seed| farm.register(seed));
        farm.tell_storage(2, 1 << 40, vec![]);
        farm.hold_model(1);
        let model_of = |share: bool| -> protocol::LockedModel {
            let path = "models/loras/a.safetensors".parse().expect("a path");
            let (size, blob) = (model().size, Some(model().hash));
            protocol::LockedModel { path, size, sha256: None, blob, sources: vec![], disabled: false, share }
        };
        let deploy = |version: u32, share: bool| {
            let workflow = DeployedWorkflow { models: vec![model_of(share)], ..(*workflow(version)).clone() };
            Event::Deploy(std::sync::Arc::new(workflow))
        };
        farm.apply(deploy(2, true));
        farm.apply(deploy(3, false));
        let wish = Event::Keep { blob: model(), copies: 1, author: Some(node(1)) };
        farm.apply(wish);
        assert_eq!(farm.asked(), []);
        let view = farm.state.blob_view(&BlobName::Blake3(model().hash));
        assert_eq!((view.used_by.len(), view.keep), (2, None));
    }

    #[test]
    fn blob_is_shown_with_those_who_have_a_part() {
        let mut farm = Farm::new();
        (1..=2).for_each(|seed| farm.register(seed));
        farm.hold_model(1);
        let name = BlobName::Blake3(model().hash);
        let transfer = Transfer { name, size: model().size, here: PIECE_SIZE, sources: vec![] };
        farm.say(2, NodeMessage::Transfers(Transfers { transfers: vec![transfer], faults: vec![] }));
        let view = farm.state.blob_view(&name);
        assert_eq!(view.blob, Some(model()));
        assert_eq!(view.holders.iter().map(|holder| holder.peer).collect::<Vec<_>>(), [node(1)]);
        assert_eq!((view.parts[0].peer, view.parts[0].here), (node(2), PIECE_SIZE));
        assert_eq!(farm.state.node_view(node(2)).expect("known").transfers.transfers.len(), 1);
        farm.disconnect(2);
        assert!(farm.state.blob_view(&name).parts.is_empty());
        assert!(farm.state.node_view(node(2)).expect("known").transfers.transfers.is_empty());
    }
}
