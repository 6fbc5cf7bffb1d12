//! Tokens: which host each belongs to, and that nobody else sees it.
//!
//! Not here: where their text comes from; whoever starts the process reads the environment.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use reqwest::Url;
use reqwest::header::HeaderValue;

/// The variable with the token of Hugging Face.
pub const HF_TOKEN: &str = "HF_TOKEN";
/// The variable with the token of Civitai.
pub const CIVITAI_API_TOKEN: &str = "CIVITAI_API_TOKEN";

/// A host that asks for a token, by exactly its names, and the variable that has it.
const SERVICES: [(&str, &[&str]); 2] =
    [(HF_TOKEN, &["huggingface.co", "hf.co"]), (CIVITAI_API_TOKEN, &["civitai.com"])];

/// What proves to a host who asks. Nothing shows its text.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

/// A text that is no token; it is not repeated here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a token is letters, digits and signs, with no space in it")]
pub struct ParseTokenError;

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(hidden)")
    }
}

impl FromStr for Token {
    type Err = ParseTokenError;

    fn from_str(text: &str) -> Result<Self, ParseTokenError> {
        let text = text.trim();
        let is_token = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
        if is_token { Ok(Self(text.to_owned())) } else { Err(ParseTokenError) }
    }
}

impl Token {
    /// The header that shows it to its host.
    pub(super) fn header(&self) -> HeaderValue {
        let text = format!("Bearer {}", self.0);
        let mut value = HeaderValue::from_str(&text).expect("a token is printable ASCII");
        value.set_sensitive(true);
        value
    }
}

/// The tokens of this process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tokens(BTreeMap<&'static str, Token>);

/// What there is for a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TokenFor<'a> {
    /// This variable's token.
    Known(&'static str, &'a Token),
    /// This variable would have it, and is not set.
    Missing(&'static str),
    /// The host is none that a token is known for.
    Nobody,
}

impl Tokens {
    /// The tokens that these variables have, such as those of the environment; an empty one counts as none.
    pub fn from_variables(read: impl Fn(&str) -> Option<String>) -> Result<Self, ParseTokenError> {
        let set = SERVICES.iter().filter_map(|(variable, _)| {
            let text = read(variable).filter(|text| !text.trim().is_empty())?;
            Some(text.parse().map(|token| (*variable, token)))
        });
        Ok(Self(set.collect::<Result<_, _>>()?))
    }

    /// What may be shown to the host of this URL: only to exactly its own, over https, at the usual port.
    pub(super) fn of(&self, url: &Url) -> TokenFor<'_> {
        let host = url.host_str().unwrap_or_default();
        let service = SERVICES.iter().find(|(_, hosts)| hosts.contains(&host));
        match service {
            Some((variable, _)) if url.scheme() == "https" && url.port().is_none() => {
                match self.0.get(variable) {
                    Some(token) => TokenFor::Known(variable, token),
                    None => TokenFor::Missing(variable),
                }
            }
            _ => TokenFor::Nobody,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens() -> Tokens {
        let read = |name: &str| (name == HF_TOKEN).then(|| " hf_secret\n".to_owned());
        Tokens::from_variables(read).expect("it is a token")
    }

    fn is_shown_to(url: &str) -> bool {
        matches!(tokens().of(&url.parse().expect("a URL")), TokenFor::Known(HF_TOKEN, _))
    }

    #[test]
    fn token_is_for_exactly_its_hosts_over_https() {
        for url in ["https://huggingface.co/a/b", "https://hf.co/a", "https://HuggingFace.co:443/a"] {
            assert!(is_shown_to(url), "{url}");
        }
        let others = [
            "http://huggingface.co/a",
            "https://huggingface.co:8443/a",
            "https://cdn-lfs.huggingface.co/a",
            "https://huggingface.co.example.org/a",
            "https://huggingface.co./a",
            "https://nothuggingface.co/a",
            "https://example.org/huggingface.co",
            "https://huggingface.co@example.org/",
            "https://civitai.com/a",
        ];
        for url in others {
            assert!(!is_shown_to(url), "{url}");
        }
        let civitai = tokens();
        let missing = civitai.of(&"https://civitai.com/a".parse().expect("a URL"));
        assert_eq!(missing, TokenFor::Missing(CIVITAI_API_TOKEN));
    }

    #[test]
    fn text_of_a_token_is_never_shown() {
        let tokens = tokens();
        assert!(!format!("{tokens:?}").contains("secret"));
        let TokenFor::Known(_, token) = tokens.of(&"https://hf.co/".parse().expect("a URL")) else {
            panic!("there is one")
        };
        assert!(!format!("{:?}", token.header()).contains("secret"));
        for wrong in ["", "two words", "line\nbreak", "ä"] {
            assert_eq!(wrong.parse::<Token>(), Err(ParseTokenError), "{wrong:?}");
        }
    }
}
