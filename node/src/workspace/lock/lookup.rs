//! Where models can be fetched from, asked of those who publish them, by what the files are and not by their names; and
//! which files the packages have (`indexes`).
//!
//! An answer is believed as far as it names the file's own hash. One that does not come, or is of no use, is told and
//! stops nothing. Not here: what is known without asking (`sources`, `hub`).

mod civitai;
mod hugging_face;
pub mod indexes;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use mesh::origin::{OriginConfig, OriginError, OriginReader, OriginSetupError, Tokens};
use protocol::{BlobHash, HttpsUrl, LockedModel, Lockfile, ModelPath, Sha256, Source, WebUrl, error_chain};
use serde::de::DeserializeOwned;

pub use civitai::CIVITAI;

use super::hub::HubRepository;
use civitai::Civitai;
use hugging_face::HuggingFace;

/// How long a service may be silent.
const SILENCE: Duration = Duration::from_secs(20);

/// Who is asked, and what about.
#[derive(Clone, Debug)]
pub struct LookupRequest<'a> {
    /// Civitai, or what answers as it does.
    pub civitai: &'a WebUrl,
    /// The hub of Hugging Face, or what answers as it does.
    pub hugging_face: &'a WebUrl,
    /// The repositories of the hub that are looked through, beside those of other models; the likeliest first.
    pub repositories: &'a [HubRepository],
    /// What travels with the bundle, so that nobody needs to have it.
    pub travelling: &'a BTreeSet<BlobHash>,
    /// The tokens of these hosts.
    pub tokens: &'a Tokens,
}

/// What came of asking one service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Who was asked, such as `Civitai`.
    pub asked: &'static str,
    /// For what: the path of a model, or a repository.
    pub about: String,
    /// What it said.
    pub said: Said,
}

/// What a service said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// The file is there.
    Found(HttpsUrl),
    /// It does not have it, in words.
    Nothing(String),
    /// It did not answer, or nothing that helps; in words.
    Failed(String),
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { asked, about, said } = self;
        match said {
            Said::Found(url) => write!(f, "{asked} has `{about}`: {url}"),
            Said::Nothing(words) => write!(f, "{asked} has no `{about}`{words}"),
            Said::Failed(reason) => write!(f, "{asked} does not tell of `{about}`: {reason}"),
        }
    }
}

/// Asks about each model of a lockfile that no source is known of and that is no secret, and writes down what is
/// found. `tell` hears each answer as it comes.
pub async fn look_up(
    lockfile: &mut Lockfile,
    request: &LookupRequest<'_>,
    tell: &mut (dyn FnMut(Answer) + Send),
) -> Result<(), OriginSetupError> {
    let travels = |model: &LockedModel| model.blob.is_some_and(|blob| request.travelling.contains(&blob));
    let is_open =
        |model: &LockedModel| model.sources.is_empty() && model.share && !model.disabled && !travels(model);
    if !lockfile.models.iter().any(is_open) {
        return Ok(());
    }
    let mut civitai = Civitai::new(Service::new("Civitai", request.civitai, CIVITAI, request.tokens)?);
    let mut hub = HuggingFace::new(request)?;
    let known: Vec<HttpsUrl> = lockfile.models.iter().flat_map(urls).cloned().collect();
    known.iter().for_each(|url| hub.add_of(url));
    for model in lockfile.models.iter_mut().filter(|model| is_open(model)) {
        let Some(wanted) = Wanted::of(model) else { continue };
        let mut found = civitai.find(&wanted, tell).await;
        if found.is_none() {
            found = hub.find(&wanted, tell).await;
        }
        if let Some(url) = found {
            // Its repository may have the other files of the same model.
            hub.add_of(&url);
            model.sources.push(Source { url });
        }
    }
    Ok(())
}

fn urls(model: &LockedModel) -> impl Iterator<Item = &HttpsUrl> {
    model.sources.iter().map(|source| &source.url)
}

/// A file that is looked for.
struct Wanted {
    path: ModelPath,
    sha256: Sha256,
    size: u64,
}

impl Wanted {
    fn of(model: &LockedModel) -> Option<Self> {
        Some(Self { path: model.path.clone(), sha256: model.sha256?, size: model.size })
    }

    fn answer(&self, asked: &'static str, said: Said) -> Answer {
        Answer { asked, about: self.path.to_string(), said }
    }
}

/// A host with an API.
struct Service {
    name: &'static str,
    base: String,
    reader: OriginReader,
    /// Whether it is asked again: not where it could not be reached, or was asked too much.
    is_reachable: bool,
}

impl Service {
    /// The one at this address; `usual` is where it is for everybody.
    fn new(
        name: &'static str,
        base: &WebUrl,
        usual: &str,
        tokens: &Tokens,
    ) -> Result<Self, OriginSetupError> {
        let base = base.as_str().trim_end_matches('/').to_owned();
        let reader = OriginReader::new(OriginConfig {
            tokens: tokens.clone(),
            // Another address than the usual one was given by whoever packs, and may be an office's own.
            allow_http: base.starts_with("http://"),
            allow_private: base != usual,
            silence: SILENCE,
            ..OriginConfig::default()
        })?;
        Ok(Self { name, base, reader, is_reachable: true })
    }

    /// Asks for a document at an address of it, and where it goes on.
    async fn ask<T: DeserializeOwned>(
        &mut self,
        url: &str,
        limit: usize,
    ) -> Result<(T, Option<String>), AskError> {
        let document = self.reader.document(url, limit).await.inspect_err(|error| {
            let is_away = |error: &OriginError| {
                matches!(
                    error,
                    OriginError::Connect { .. }
                        | OriginError::Silent { .. }
                        | OriginError::Slow { .. }
                        // It wants to be left alone.
                        | OriginError::Busy { status: 429, .. }
                )
            };
            self.is_reachable &= !is_away(error);
        })?;
        let next = document.next.filter(|next| next.starts_with(&format!("{}/", self.base)));
        Ok((serde_json::from_slice(&document.bytes)?, next))
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
enum AskError {
    /// None came.
    #[error(transparent)]
    Origin(#[from] OriginError),
    /// It is another one than its documentation says.
    #[error("it answers with something else than its documentation says")]
    Json(#[from] serde_json::Error),
}

impl AskError {
    fn is_not_found(&self) -> bool {
        matches!(self, Self::Origin(OriginError::NotFound { .. }))
    }

    fn words(&self) -> String {
        error_chain(self)
    }
}
