//! Civitai, which knows every file that was uploaded to it by its SHA-256.
//!
//! Not here: what it is asked about.

use protocol::HttpsUrl;
use serde_json::Value;

use super::super::sources::{url_of_file, without_token};
use super::{Answer, Said, Service, Wanted};

/// Where it is for everybody.
pub const CIVITAI: &str = "https://civitai.com";
/// The largest answer that is read, in bytes: a version has descriptions and pictures beside its files.
const MAX_ANSWER: usize = 4 << 20;

pub(super) struct Civitai(Service);

impl Civitai {
    pub(super) fn new(service: Service) -> Self {
        Self(service)
    }

    /// The address of a file.
    pub(super) async fn find(
        &mut self,
        wanted: &Wanted,
        tell: &mut (dyn FnMut(Answer) + Send),
    ) -> Option<HttpsUrl> {
        if !self.0.is_reachable {
            return None;
        }
        let hash = wanted.sha256.to_string().to_uppercase();
        let url = format!("{}/api/v1/model-versions/by-hash/{hash}", self.0.base);
        let said = match self.0.ask::<Value>(&url, MAX_ANSWER).await {
            Ok((version, _)) => {
                let url = url_of_file(&version, &wanted.sha256.to_string());
                match url.and_then(|url| without_token(&url).parse().ok()) {
                    Some(url) => Said::Found(url),
                    None => Said::Failed("it answers with another file".to_owned()),
                }
            }
            Err(error) if error.is_not_found() => Said::Nothing(String::new()),
            Err(error) => Said::Failed(error.words()),
        };
        tell(wanted.answer(self.0.name, said.clone()));
        match said {
            Said::Found(url) => Some(url),
            _ => None,
        }
    }
}
