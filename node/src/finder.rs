//! Whom this node's data plane asks where blobs are: the coordinator, over the session of the moment.
//!
//! A question waits for its answer, for a bounded time, and with a bounded number of others. Not here: the
//! session itself; the duty sends the questions and hands the answers in.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use mesh::finder::{FindError, Finder, Found};
use mesh::swarm::MeshFinder;
use protocol::message::{Locate, Located, NodeMessage, OriginLease, ReadOrigin};
use protocol::{BlobName, FileRef, PieceRange};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;

/// How many questions wait for an answer at a time; further ones wait for their turn.
const MAX_OPEN: usize = 64;
/// How long an answer is waited for.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// A question for the coordinator, and the way back for its answer.
pub(crate) struct Question {
    asked: Asked,
    answer: oneshot::Sender<Answer>,
}

/// What is asked.
enum Asked {
    Locate(BlobName),
    ReadOrigin { file: FileRef, held: Vec<PieceRange>, wanted: u64 },
}

/// What is answered.
enum Answer {
    Located(Located),
    OriginLease(OriginLease),
}

/// The asking end. A clone asks over the same session.
#[derive(Clone)]
pub struct SessionFinder {
    questions: mpsc::Sender<Question>,
    open: Arc<Semaphore>,
    patience: Duration,
}

impl SessionFinder {
    /// A finder, and what it asks, for the duty.
    pub(crate) fn new() -> (Self, mpsc::Receiver<Question>) {
        let (questions, asked) = mpsc::channel(MAX_OPEN);
        (Self { questions, open: Arc::new(Semaphore::new(MAX_OPEN)), patience: ANSWER_TIMEOUT }, asked)
    }

    /// The same, and the other members where no coordinator answers.
    pub(crate) fn or_members(&self, members: MeshFinder) -> NodeFinder {
        NodeFinder { session: self.clone(), members }
    }

    async fn ask(&self, asked: Asked) -> Result<Answer, FindError> {
        let asking = async {
            let _permit = self.open.acquire().await.map_err(|_| FindError::Offline)?;
            let (answer, answered) = oneshot::channel();
            self.questions.send(Question { asked, answer }).await.map_err(|_| FindError::Offline)?;
            // It is dropped where no session is open, or the session is lost.
            answered.await.map_err(|_| FindError::Offline)
        };
        timeout(self.patience, asking).await.unwrap_or(Err(FindError::Timeout))
    }
}

#[async_trait]
impl Finder for SessionFinder {
    async fn locate(&self, name: &BlobName) -> Result<Found, FindError> {
        match self.ask(Asked::Locate(*name)).await? {
            Answer::Located(located) => Ok(located.into()),
            Answer::OriginLease(_) => Err(FindError::Offline),
        }
    }

    async fn read_origin(
        &self,
        file: &FileRef,
        held: Vec<PieceRange>,
        wanted: u64,
    ) -> Result<OriginLease, FindError> {
        match self.ask(Asked::ReadOrigin { file: *file, held, wanted }).await? {
            Answer::OriginLease(lease) => Ok(lease),
            Answer::Located(_) => Err(FindError::Offline),
        }
    }
}

/// Asks the coordinator, and the other members where none answers.
#[derive(Clone)]
pub(crate) struct NodeFinder {
    session: SessionFinder,
    members: MeshFinder,
}

#[async_trait]
impl Finder for NodeFinder {
    async fn locate(&self, name: &BlobName) -> Result<Found, FindError> {
        match self.session.locate(name).await {
            Err(error) => match self.members.locate(name).await {
                Ok(found) if !found.providers.is_empty() => Ok(found),
                Ok(_) if error == FindError::Offline => Err(FindError::Nowhere),
                _ => Err(error),
            },
            located => located,
        }
    }

    async fn read_origin(
        &self,
        file: &FileRef,
        held: Vec<PieceRange>,
        wanted: u64,
    ) -> Result<OriginLease, FindError> {
        self.session.read_origin(file, held, wanted).await
    }
}

/// The questions that were sent on a session and are not answered yet.
#[derive(Default)]
pub(crate) struct OpenQuestions {
    asked: u64,
    open: HashMap<u64, oneshot::Sender<Answer>>,
}

impl OpenQuestions {
    /// Takes a question in, and says what to send for it.
    pub(crate) fn open(&mut self, question: Question) -> NodeMessage {
        // Whoever asked may have given up.
        self.open.retain(|_, answer| !answer.is_closed());
        self.asked += 1;
        let request = self.asked;
        self.open.insert(request, question.answer);
        match question.asked {
            Asked::Locate(name) => NodeMessage::Locate(Locate { request, name }),
            Asked::ReadOrigin { file, held, wanted } => {
                NodeMessage::ReadOrigin(ReadOrigin { request, file, held, wanted })
            }
        }
    }

    /// Hands in who holds a blob.
    pub(crate) fn located(&mut self, located: Located) {
        self.answer(located.request, Answer::Located(located));
    }

    /// Hands in what may be read.
    pub(crate) fn origin_lease(&mut self, lease: OriginLease) {
        self.answer(lease.request, Answer::OriginLease(lease));
    }

    /// The session is lost: nothing of it will be answered.
    pub(crate) fn close(&mut self) {
        self.open.clear();
    }

    fn answer(&mut self, request: u64, answer: Answer) {
        if let Some(asking) = self.open.remove(&request) {
            // Whoever asked may have given up.
            let _ = asking.send(answer);
        }
    }
}

#[cfg(test)]
mod tests {
    use mesh::gate::Credentials;
    use mesh::store::BlobStore;
    use mesh::swarm::{Mesh, MeshConfig};
    use protocol::{BlobHash, PeerId, Sha256};

    use super::*;
    use crate::testing::{Farm, PATIENCE, key, loopback, now};

    fn name() -> BlobName {
        BlobName::Blake3(BlobHash([1; 32]))
    }

    fn located(request: u64) -> Located {
        Located { request, blob: None, providers: vec![], readers: vec![] }
    }

    #[tokio::test]
    async fn answers_find_their_questions_in_any_order() {
        let (finder, mut asked) = SessionFinder::new();
        let file = FileRef { sha256: Sha256([2; 32]), size: 9 };
        let duty = async {
            let mut open = OpenQuestions::default();
            let mut requests = Vec::new();
            for _ in 0..2 {
                match open.open(asked.recv().await.expect("it asks")) {
                    NodeMessage::Locate(locate) => requests.push((locate.request, true)),
                    NodeMessage::ReadOrigin(asked) => requests.push((asked.request, false)),
                    other => panic!("{other:?}"),
                }
            }
            open.located(located(99));
            for (request, is_locate) in requests.into_iter().rev() {
                if is_locate {
                    open.located(located(request));
                } else {
                    let (ranges, duration) = (vec![(0..1).into()], Duration::from_secs(20));
                    open.origin_lease(OriginLease { request, ranges, duration, readers: vec![] });
                }
            }
        };
        let (name, held) = (name(), vec![]);
        let (found, lease, ()) = tokio::join!(finder.locate(&name), finder.read_origin(&file, held, 1), duty);
        assert_eq!(found, Ok(Found::default()));
        assert_eq!(lease.expect("it is answered").ranges, [PieceRange { first: 0, count: 1 }]);
    }

    /// A member's control plane, and who it is.
    async fn member(farm: &Farm) -> (Mesh, PeerId) {
        let identity = Arc::new(key());
        let peer = identity.peer();
        let (mesh, _) = Mesh::start(MeshConfig::new(identity, vec![loopback()])).await.expect("a mesh");
        mesh.set_credentials(Credentials::new(farm.id(), peer, farm.admit(peer, now())));
        (mesh, peer)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn members_are_asked_where_no_session_is_open() {
        let farm = Farm::new();
        let ((asking, _), (holding, holder)) = (member(&farm).await, member(&farm).await);
        let folder = tempfile::tempdir().expect("a folder");
        let store = BlobStore::open(folder.path()).await.expect("a store");
        let blob = store.import_bytes(b"held").await.expect("there is room");
        holding.set_store(store);
        let name = BlobName::Blake3(blob.hash);
        holding.start_providing(&name).await;
        asking.meet(holder, holding.addresses()).await.expect("it is a member");
        let (finder, asked) = SessionFinder::new();
        drop(asked);
        let finder = finder.or_members(MeshFinder::new(asking));
        let located = timeout(PATIENCE, async {
            loop {
                // Its announcement may still be on its way.
                if let Ok(found) = finder.locate(&name).await {
                    return found;
                }
            }
        });
        let found = located.await.expect("it is found");
        assert_eq!((found.blob, found.providers[0].peer), (Some(blob), holder));
        let unknown = BlobName::Blake3(BlobHash([9; 32]));
        assert_eq!(finder.locate(&unknown).await, Err(FindError::Nowhere));
    }

    #[tokio::test]
    async fn lost_session_ends_its_questions_at_once() {
        let (finder, mut asked) = SessionFinder::new();
        let duty = async {
            let mut open = OpenQuestions::default();
            open.open(asked.recv().await.expect("it asks"));
            open.close();
            // Without a session the next one is not even sent.
            drop(asked.recv().await);
            drop(asked);
        };
        let name = name();
        let asking = async {
            assert_eq!(finder.locate(&name).await, Err(FindError::Offline));
            assert_eq!(finder.locate(&name).await, Err(FindError::Offline));
            assert_eq!(finder.locate(&name).await, Err(FindError::Offline), "the node is gone");
        };
        tokio::join!(asking, duty);
    }

    #[tokio::test]
    async fn silent_coordinator_is_not_waited_for_and_its_late_answer_does_no_harm() {
        let (mut finder, mut asked) = SessionFinder::new();
        finder.patience = Duration::from_millis(1);
        let mut open = OpenQuestions::default();
        assert_eq!(finder.locate(&name()).await, Err(FindError::Timeout));
        open.open(asked.recv().await.expect("it asked"));
        open.located(located(1));
        assert!(open.open.is_empty());
    }
}
