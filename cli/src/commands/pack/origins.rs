//! Where the models of a bundle can be fetched from: what its author says, and who is asked about the rest.
//!
//! Not here: how a service is asked, and what its answer is worth; `node::workspace::lock` knows that.

use std::collections::BTreeSet;
use std::path::PathBuf;

use clap::Args;
use mesh::origin::Tokens;
use node::workspace::lock::hub::{HUGGING_FACE, HubRepository, cached_repositories};
use node::workspace::lock::lookup::{Answer, CIVITAI, LookupRequest, Said, look_up};
use node::workspace::lock::without_token;
use protocol::{BlobHash, HttpsUrl, Lockfile, Sha256, WebUrl};
use serde_json::{Value, json};

use crate::environment;

#[derive(Debug, Args)]
pub(crate) struct OriginArguments {
    /// Where a model can be fetched from, by its SHA-256. Repeatable.
    #[arg(long, value_name = "SHA256=URL", value_parser = source)]
    pub(super) source: Vec<(Sha256, HttpsUrl)>,
    /// A repository of Hugging Face that is looked through for the models. Repeatable.
    #[arg(long, value_name = "OWNER/NAME", conflicts_with = "offline")]
    hf_repo: Vec<HubRepository>,
    /// Ask nobody where the models can be fetched from, nor for the hashes of packages.
    #[arg(long)]
    pub(super) offline: bool,
    /// What answers as Civitai does; it is asked by the SHA-256 of each model that no source is known of.
    #[arg(long, value_name = "URL", default_value = CIVITAI)]
    civitai: WebUrl,
    /// What answers as the hub of Hugging Face does; it is asked by the names of these models, and which hashes its
    /// repositories have.
    #[arg(long, value_name = "URL", env = environment::HF_ENDPOINT, default_value = HUGGING_FACE)]
    pub(super) hugging_face: WebUrl,
}

impl OriginArguments {
    /// Asks about the models that no source is known of. Each answer is told on stderr as it comes.
    pub(super) async fn look_up(
        &self,
        lockfile: &mut Lockfile,
        caches: &[PathBuf],
        travelling: &BTreeSet<BlobHash>,
    ) -> anyhow::Result<Vec<Answer>> {
        let mut answers = Vec::new();
        if !self.offline {
            let cached = caches.iter().flat_map(|cache| cached_repositories(cache));
            let repositories: Vec<HubRepository> = self.hf_repo.iter().cloned().chain(cached).collect();
            let request = LookupRequest {
                civitai: &self.civitai,
                hugging_face: &self.hugging_face,
                repositories: &repositories,
                travelling,
                tokens: &Tokens::from_variables(environment::host_token)?,
            };
            let mut tell = |answer: Answer| {
                eprintln!("{answer}");
                answers.push(answer);
            };
            look_up(lockfile, &request, &mut tell).await?;
        }
        Ok(answers)
    }
}

/// The caches in which the tools of Hugging Face keep what they fetched.
pub(super) fn hub_caches() -> Vec<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let user = || set(environment::XDG_CACHE_HOME).or_else(|| Some(set(environment::HOME)?.join(".cache")));
    let home = || set(environment::HF_HOME).or_else(|| Some(user()?.join("huggingface")));
    let named = environment::HF_HUB_CACHE.into_iter().find_map(set);
    named.or_else(|| Some(home()?.join("hub"))).into_iter().collect()
}

/// An answer for programs.
pub(super) fn as_json(Answer { asked, about, said }: &Answer) -> Value {
    match said {
        Said::Found(url) => json!({ "asked": asked, "about": about, "url": url }),
        Said::Nothing(_) => json!({ "asked": asked, "about": about }),
        Said::Failed(reason) => json!({ "asked": asked, "about": about, "error": reason }),
    }
}

/// Reads `SHA256=URL`. A token in the address would be published with it, so it is left out.
fn source(text: &str) -> Result<(Sha256, HttpsUrl), String> {
    let (sha256, url) = text.split_once('=').ok_or("give a SHA-256 and an https URL as SHA256=URL")?;
    let sha256 = sha256.strip_prefix("sha256:").unwrap_or(sha256);
    let sha256 = sha256.to_ascii_lowercase().parse().map_err(|error| format!("{error}"))?;
    Ok((sha256, without_token(url).parse().map_err(|error| format!("{error}"))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn source_is_a_sha256_and_an_https_url_without_a_token() {
        let sha256 = "ab".repeat(32);
        let (read, url) =
            source(&format!("sha256:{}=https://a.org/x?token=1&b=2", sha256.to_uppercase())).expect("one");
        assert_eq!((read.to_string(), url.as_str()), (sha256.clone(), "https://a.org/x?b=2"));
        for wrong in ["x", "ab=https://a.org/x", &format!("{sha256}=http://a.org/x")] {
            assert!(source(wrong).is_err(), "{wrong}");
        }
    }
}
