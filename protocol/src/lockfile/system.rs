//! What a workspace needs of the system that it is on, which no rebuild brings.
//!
//! Not here: how it is found out on the machine where a bundle is packed, and whether a node has it.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::text::{FileName, Token};

/// What was found on the machine where a bundle was packed. Whoever lacks some of it may do without: not all that is
/// linked or called is needed by each workflow.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SystemNeeds {
    /// Libraries that packages or custom nodes are linked to, by the names that the loader looks for: `libGL.so.1`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub libraries: Vec<SystemNeed>,
    /// Programs that custom nodes call, by the names that are looked for in `PATH`: `ffmpeg`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub programs: Vec<SystemNeed>,
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SystemNeed {
    /// What it is looked for by.
    pub name: FileName,
    /// The package of Debian, or of a system that is made from it, that brought it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub package: Option<Token>,
}

impl SystemNeeds {
    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.libraries.is_empty() && self.programs.is_empty()
    }

    /// All of it, each with the word for what it is.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &SystemNeed)> {
        let libraries = self.libraries.iter().map(|need| ("library", need));
        libraries.chain(self.programs.iter().map(|need| ("program", need)))
    }
}

impl fmt::Display for SystemNeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.package {
            Some(package) => write!(f, "{} (Debian and Ubuntu: `apt install {package}`)", self.name),
            None => self.name.fmt(f),
        }
    }
}
