//! Which repositories the owner lets be asked.

use std::collections::BTreeSet;

use protocol::GitUrl;

use super::GitError;
use crate::policy::Policy;

/// Which repositories are asked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GitRules {
    /// The only hosts; any where it is empty.
    pub hosts: BTreeSet<String>,
    /// Whether plain http, hosts that are not public, and paths of this machine are asked.
    pub private_origins: bool,
}

impl From<&Policy> for GitRules {
    fn from(policy: &Policy) -> Self {
        Self { hosts: policy.hosts.clone(), private_origins: policy.private_origins }
    }
}

impl GitRules {
    pub(super) fn check(&self, url: &GitUrl) -> Result<(), GitError> {
        let refused = |reason| Err(GitError::Refused { url: url.to_string(), reason });
        if !self.hosts.is_empty() && !self.hosts.contains(&url.host()) {
            return refused("its host is not among those that this node's owner allows (`--allow-host`)");
        }
        if !self.private_origins && !url.is_public() {
            return refused(
                "only https addresses of public hosts are, unless the node's owner says `--allow-private-origins`",
            );
        }
        Ok(())
    }
}
