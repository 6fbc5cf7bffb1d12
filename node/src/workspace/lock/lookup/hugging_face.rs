//! The hub of Hugging Face: it finds no file by its hash, but lists each repository with the hashes of its files.
//!
//! So the repositories are looked through that are likely to have it: those that were named, those of the other
//! models, those in caches, and what the hub finds by the file's name. Not here: how a file of it is addressed.

use std::collections::{BTreeMap, BTreeSet};

use mesh::origin::OriginSetupError;
use percent_encoding::utf8_percent_encode;
use protocol::{GitCommit, HttpsUrl, Sha256, URL_PART, WebUrl};
use serde::Deserialize;

use super::super::hub::{HUGGING_FACE, HubRepository};
use super::{Answer, AskError, LookupRequest, Said, Service, Wanted};

/// The largest answer that is read, in bytes: a page lists at most a thousand files.
const MAX_ANSWER: usize = 4 << 20;
/// The most pages of one repository.
const MAX_PAGES: usize = 20;
/// How many repositories that were not named are looked through.
const MAX_REPOSITORIES: usize = 40;
/// How many of those that are found by a file's name are looked through.
const MAX_FOUND: usize = 4;

pub(super) struct HuggingFace {
    service: Service,
    base: WebUrl,
    /// In the order in which they are looked through.
    candidates: Vec<HubRepository>,
    /// What those have that were looked through.
    listed: BTreeMap<HubRepository, Listing>,
}

/// What a repository has at a commit: files by their hash, with their sizes and paths. Nothing of one that could not
/// be read.
#[derive(Default)]
struct Listing {
    commit: Option<GitCommit>,
    files: BTreeMap<Sha256, (u64, String)>,
}

/// The hub's word for a repository at a revision.
#[derive(Deserialize)]
struct Revision {
    sha: GitCommit,
}

/// One entry of a repository's tree.
#[derive(Deserialize)]
struct Entry {
    path: String,
    /// Where its bytes are, if they are many.
    #[serde(default)]
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    oid: String,
    size: u64,
}

/// One repository that was found by a name.
#[derive(Deserialize)]
struct Found {
    id: String,
}

impl HuggingFace {
    pub(super) fn new(request: &LookupRequest<'_>) -> Result<Self, OriginSetupError> {
        let service = Service::new("Hugging Face", request.hugging_face, HUGGING_FACE, request.tokens)?;
        let base = request.hugging_face.clone();
        Ok(Self { service, base, candidates: request.repositories.to_vec(), listed: BTreeMap::new() })
    }

    /// Looks through the repository of this address as well, if it is one of the hub.
    pub(super) fn add_of(&mut self, url: &HttpsUrl) {
        let found = HubRepository::of_address(&self.base, url);
        if let Some(found) = found.filter(|found| !self.candidates.contains(found)) {
            self.candidates.insert(0, found);
        }
    }

    /// The address of a file.
    pub(super) async fn find(
        &mut self,
        wanted: &Wanted,
        tell: &mut (dyn FnMut(Answer) + Send),
    ) -> Option<HttpsUrl> {
        let mut tried = BTreeSet::new();
        for repository in self.candidates.clone() {
            if let Some(url) = self.find_in(&repository, wanted, tell).await {
                return Some(url);
            }
            tried.insert(repository);
        }
        for repository in self.search(wanted, tell).await {
            if let Some(url) = self.find_in(&repository, wanted, tell).await {
                return Some(url);
            }
            tried.insert(repository);
        }
        if self.service.is_reachable {
            let is_listed = |repository: &&HubRepository| {
                self.listed.get(repository).is_some_and(|listing| listing.commit.is_some())
            };
            let words = match tried.iter().filter(is_listed).count() {
                0 if tried.is_empty() => {
                    ": no repository was found by its name; name one with `--hf-repo`".to_owned()
                }
                0 => ": no repository could be looked through; name one with `--hf-repo`".to_owned(),
                1 => " in the one repository that was looked through".to_owned(),
                count => format!(" in the {count} repositories that were looked through"),
            };
            tell(wanted.answer(self.service.name, Said::Nothing(words)));
        }
        None
    }

    async fn find_in(
        &mut self,
        repository: &HubRepository,
        wanted: &Wanted,
        tell: &mut (dyn FnMut(Answer) + Send),
    ) -> Option<HttpsUrl> {
        if !self.listed.contains_key(repository) {
            if !self.service.is_reachable || self.listed.len() >= MAX_REPOSITORIES {
                return None;
            }
            let listing = self.list(repository).await.unwrap_or_else(|error| {
                let said = Said::Failed(error.words());
                tell(Answer { asked: self.service.name, about: repository.to_string(), said });
                Listing::default()
            });
            self.listed.insert(repository.clone(), listing);
        }
        let Listing { commit, files } = self.listed.get(repository)?;
        let (size, path) = files.get(&wanted.sha256)?;
        let url = repository.address(&self.base, commit.as_ref()?, path).filter(|_| *size == wanted.size)?;
        tell(wanted.answer(self.service.name, Said::Found(url.clone())));
        Some(url)
    }

    /// What a repository has at this moment.
    async fn list(&mut self, repository: &HubRepository) -> Result<Listing, AskError> {
        let api = format!("{}/api/models/{repository}", self.service.base);
        let (Revision { sha }, _) = self.service.ask(&format!("{api}/revision/main"), MAX_ANSWER).await?;
        let mut files = BTreeMap::new();
        let mut page = Some(format!("{api}/tree/{sha}?recursive=true"));
        for _ in 0..MAX_PAGES {
            let Some(url) = page else { break };
            let (entries, next) = self.service.ask::<Vec<Entry>>(&url, MAX_ANSWER).await?;
            for Entry { path, lfs } in entries {
                let Some(Lfs { oid, size }) = lfs else { continue };
                if let Ok(sha256) = oid.trim_start_matches("sha256:").parse() {
                    files.insert(sha256, (size, path));
                }
            }
            page = next;
        }
        Ok(Listing { commit: Some(sha), files })
    }

    /// The repositories that the hub finds by a file's name.
    async fn search(&mut self, wanted: &Wanted, tell: &mut (dyn FnMut(Answer) + Send)) -> Vec<HubRepository> {
        if !self.service.is_reachable {
            return Vec::new();
        }
        let name = wanted.path.as_str().rsplit('/').next().unwrap_or_default();
        let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
        let url = format!(
            "{}/api/models?search={}&limit={MAX_FOUND}",
            self.service.base,
            utf8_percent_encode(stem, &URL_PART)
        );
        match self.service.ask::<Vec<Found>>(&url, MAX_ANSWER).await {
            Ok((found, _)) => {
                found.iter().filter_map(|found| found.id.parse().ok()).take(MAX_FOUND).collect()
            }
            Err(error) => {
                tell(wanted.answer(self.service.name, Said::Failed(error.words())));
                Vec::new()
            }
        }
    }
}
