//! An offer: what a node says it can take. The planner matches it with what a workflow requires.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::id::SlotId;

/// The most names that [`lacking`] lists.
const MAX_NAMES: usize = 5;

/// What a node can take, as it registers and whenever that changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// The machine's name, for people.
    pub host_name: String,
    /// The version of comfy-farm that it runs.
    pub agent_version: String,
    /// Operating system and architecture, such as `linux-x86_64`.
    pub platform: String,
    /// What executes workflows there.
    pub engine: Engine,
    /// The classes of op that the engine has.
    pub classes: BTreeSet<String>,
    /// The model files that the engine lists, as `folder/name` (`checkpoints/x.safetensors`).
    pub models: BTreeSet<String>,
    /// One entry for each run that it can do at a time.
    pub slots: Vec<SlotOffer>,
}

/// The names that are required and not offered, for people; `None` where all are offered.
pub fn lacking(required: &BTreeSet<String>, offered: &BTreeSet<String>) -> Option<String> {
    let missing: Vec<String> =
        required.difference(offered).take(MAX_NAMES + 1).map(|name| format!("`{name}`")).collect();
    let more = if missing.len() > MAX_NAMES { " and more" } else { "" };
    let named = missing.iter().take(MAX_NAMES).map(String::as_str).collect::<Vec<_>>().join(", ");
    (!missing.is_empty()).then(|| format!("{named}{more}"))
}

/// What executes workflows on a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Engine {
    /// The small CPU engine of comfy-farm itself.
    Builtin,
    /// A ComfyUI that the node's owner runs. It proves no lock, so it is offered only workflows that accept it.
    Attached {
        /// ComfyUI's version, as `/system_stats` gives it.
        comfyui_version: String,
    },
    /// A ComfyUI for each slot, which the node makes from a locked workspace.
    Managed,
}

impl Engine {
    /// The word that people see.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Builtin => "builtin",
            Self::Attached { .. } => "attached",
            Self::Managed => "managed",
        }
    }
}

/// One slot of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotOffer {
    /// Its number on the node.
    pub id: SlotId,
    /// What it computes on.
    pub device: Device,
}

/// What a slot computes on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Device {
    /// The processor.
    Cpu {
        /// Its threads.
        threads: u32,
        /// The machine's memory in bytes, which all its slots share.
        memory: u64,
    },
    /// A graphics card.
    Gpu {
        /// Its name, such as `NVIDIA GeForce RTX 4090`.
        name: String,
        /// The driver's own id of the card.
        uuid: String,
        /// Its memory in bytes.
        memory: u64,
    },
}

impl Device {
    /// How many bytes it has to compute in.
    pub fn memory(&self) -> u64 {
        match self {
            Self::Cpu { memory, .. } | Self::Gpu { memory, .. } => *memory,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lacking_is_named_up_to_a_number() {
        let names = |count: usize| (0..count).map(|number| format!("n{number}")).collect::<BTreeSet<_>>();
        let check = |required: usize, offered: usize, expected: Option<&str>| {
            assert_eq!(lacking(&names(required), &names(offered)).as_deref(), expected);
        };
        check(2, 3, None);
        check(2, 0, Some("`n0`, `n1`"));
        check(7, 1, Some("`n1`, `n2`, `n3`, `n4`, `n5` and more"));
    }
}
