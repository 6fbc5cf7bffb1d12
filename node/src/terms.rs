//! What an owner agrees to by joining: printed before the node takes anything.
//!
//! Not here: asking; that is the command line's.

use std::fmt;
use std::path::{Path, PathBuf};

use mesh::store::free_bytes;
use protocol::Device;

use crate::gpu::{Found, Unused};
use crate::policy::Policy;

/// What the node found and would do.
#[derive(Debug, Clone)]
pub struct Terms {
    cards: Vec<Device>,
    unused: Vec<Unused>,
    slots: usize,
    engine: EngineTerms,
    data: PathBuf,
    free: Option<u64>,
}

/// Whose code would run.
#[derive(Debug, Clone)]
pub enum EngineTerms {
    /// The engine of comfy-farm itself.
    Builtin,
    /// A ComfyUI of the owner's.
    Attached {
        /// Where it answers.
        url: String,
    },
    /// A ComfyUI of the node's own for each slot, in locked workspaces.
    Managed {
        /// What its owner allows.
        policy: Policy,
        /// Why there are no walls around it, where there are none.
        no_walls: Option<String>,
    },
}

impl Terms {
    /// Those of a machine that has these cards, and would do so many runs at once.
    pub fn of(found: Found, slots: usize, engine: EngineTerms, data: &Path) -> Self {
        // Before the first start the folder is not there yet; the one that it will be made in is.
        let data = std::path::absolute(data).unwrap_or_else(|_| data.to_owned());
        let existing = data.ancestors().find(|folder| folder.exists());
        let free = existing.and_then(|folder| free_bytes(folder).ok());
        Self { cards: found.cards, unused: found.unused, slots, engine, data, free }
    }
}

impl fmt::Display for Terms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "This machine would lend to the farm:")?;
        let on_cpu = match self.slots {
            1 => "one CPU slot".to_owned(),
            slots => format!("{slots} CPU slots"),
        };
        for card in &self.cards {
            if let Device::Gpu { name, memory, .. } = card {
                writeln!(f, "  GPU       {name}, {} GiB", memory >> 30)?;
            }
        }
        if self.cards.is_empty() {
            let why =
                if self.unused.is_empty() { "no driver of NVIDIA or AMD tells of one" } else { "see below" };
            writeln!(f, "  GPUs      none: {why}; {on_cpu}")?;
        }
        for unused in &self.unused {
            writeln!(f, "  Not used  {unused}")?;
        }
        match &self.engine {
            EngineTerms::Builtin => {
                writeln!(f, "  Engine    built in: a few image ops on the CPU")?;
                writeln!(f, "  Models    none; the built-in engine uses none")?;
                writeln!(f, "  Code      only comfy-farm's own; nothing from a bundle is executed")?;
            }
            EngineTerms::Managed { policy, no_walls } => {
                writeln!(
                    f,
                    "  Engine    a ComfyUI of its own for each slot, rebuilt as each workflow's author had it"
                )?;
                writeln!(
                    f,
                    "  Models    those of the workflows, fetched from peers and from the internet, and served to peers"
                )?;
                writeln!(f, "  Code      {policy}")?;
                match no_walls {
                    None => writeln!(
                        f,
                        "  Walls     the system read-only, none of your files, no network while it runs"
                    )?,
                    Some(reason) => {
                        writeln!(f, "  Walls     none: what it runs can read your files; {reason}")?
                    }
                }
            }
            EngineTerms::Attached { url } => {
                writeln!(f, "  Engine    your ComfyUI at {url}; your own prompts are never touched")?;
                writeln!(f, "  Models    those that it lists; none is copied or shared")?;
                writeln!(f, "  Code      the nodes installed in it; nothing from a bundle is installed")?;
            }
        }
        let disk = match &self.engine {
            EngineTerms::Managed { .. } => "for models, packages, inputs and outputs of jobs",
            _ => "for inputs and outputs of jobs",
        };
        write!(f, "  Disk      {}, {disk}", self.data.display())?;
        match self.free {
            Some(free) => writeln!(f, " ({} GiB free there)", free >> 30)?,
            None => writeln!(f)?,
        }
        writeln!(f, "  When      from now until this process ends (Ctrl-C gives everything back)")?;
        writeln!(f, "  Who       anybody with a key of the farm may run its deployed workflows here")
    }
}

#[cfg(test)]
mod tests {
    use protocol::Accelerator;

    use super::*;
    fn gpu_lines(cards: Vec<Device>, unused: Vec<Unused>, slots: usize) -> Vec<String> {
        let found = Found { cards, accelerator: Accelerator::Cpu, unused };
        let terms = Terms::of(found, slots, EngineTerms::Builtin, Path::new("/")).to_string();
        terms.lines().skip(1).take_while(|line| !line.contains("Engine")).map(str::to_owned).collect()
    }

    #[test]
    fn machine_without_a_card_is_told_how_many_runs_it_does_at_once() {
        let none = "  GPUs      none: no driver of NVIDIA or AMD tells of one; ";
        assert_eq!(gpu_lines(vec![], vec![], 1), [format!("{none}one CPU slot")]);
        assert_eq!(gpu_lines(vec![], vec![], 2), [format!("{none}2 CPU slots")]);
    }

    #[test]
    fn card_that_is_not_used_is_told_with_the_reason() {
        let card = Device::Gpu { name: "AMD gfx1100".to_owned(), uuid: String::new(), memory: 24 << 30 };
        let unused = Unused { card: "AMD gfx1036".to_owned(), reason: "it is small".to_owned() };
        let told = "  Not used  AMD gfx1036: it is small";
        assert_eq!(gpu_lines(vec![card], vec![unused.clone()], 1), ["  GPU       AMD gfx1100, 24 GiB", told]);
        assert_eq!(gpu_lines(vec![], vec![unused], 1), ["  GPUs      none: see below; one CPU slot", told]);
    }
}
