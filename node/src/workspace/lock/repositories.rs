//! ComfyUI and its custom nodes: which repository each is of, at which commit, and whether it is as that has
//! it.
//!
//! Not here: the Python packages that they need.

mod changes;
mod upstreams;

use std::fs;
use std::path::Path;

use protocol::{CustomNode, FileName, GitPin, GitUrl, ParseTextError, RegistryPin};
use serde::Deserialize;

use self::changes::Changes;
use self::upstreams::pin;
use super::carried::{Taken, carry};
use super::error::What;
use super::{Fault, Findings, LockError, LockRequest};
use crate::workspace::git::LocalRepository;

pub(super) use upstreams::Upstreams;

/// Where ComfyUI-Manager keeps what it switched off.
const SWITCHED_OFF: &str = ".disabled";
/// The list of its files in what ComfyUI-Manager installed from the registry.
const TRACKING: &str = ".tracking";

/// The commit of ComfyUI itself.
pub(super) fn comfyui(folder: &Path, findings: &mut Findings) -> Option<GitPin> {
    match LocalRepository::open(folder) {
        Ok(Some(repository)) => {
            Changes::of(&What::ComfyUi, &repository, findings).tell(What::ComfyUi, findings);
            pin(What::ComfyUi, &repository, findings)
        }
        Ok(None) => {
            findings.faults.push(Fault::NoRepository);
            None
        }
        Err(fault) => {
            findings.faults.push(Fault::Git { what: What::ComfyUi, fault });
            None
        }
    }
}

/// All that is in `custom_nodes`, but what comes with ComfyUI's own commit.
pub(super) fn custom_nodes(
    request: &LockRequest<'_>,
    findings: &mut Findings,
) -> Result<Vec<CustomNode>, LockError> {
    let comfyui = request.comfyui;
    let folder = comfyui.join("custom_nodes");
    // Where it cannot be opened, that is told already.
    let repository = LocalRepository::open(comfyui).ok().flatten();
    let comes_along =
        |name: &str| repository.as_ref().is_some_and(|own| own.has(&format!("custom_nodes/{name}")));
    let mut nodes = Vec::new();
    for name in names(&folder)? {
        let path = folder.join(&name);
        let is_python = path.is_dir() || name.ends_with(".py") || name.ends_with(".py.disabled");
        if name.starts_with('.') || name == "__pycache__" || !is_python || comes_along(&name) {
            continue;
        }
        match name.strip_suffix(".disabled") {
            Some(name) => nodes.extend(disabled(name, &path, findings)),
            None => nodes.extend(enabled(&name, &path, request, findings)),
        }
    }
    let travels = |name: &&String| findings.carried.iter().any(|node| node.name.as_str() == name.as_str());
    match request.carry.iter().find(|name| !travels(name)) {
        Some(name) if findings.faults.is_empty() => {
            return Err(LockError::UnusedCarry { name: name.clone() });
        }
        _ => {}
    }
    let folder = folder.join(SWITCHED_OFF);
    if folder.is_dir() {
        for name in names(&folder)? {
            nodes.extend(disabled(&name, &folder.join(&name), findings));
        }
    }
    Ok(without_doubles(nodes))
}

/// The names in a folder, in order; those that are no text are of no use to ComfyUI either.
fn names(folder: &Path) -> Result<Vec<String>, LockError> {
    let entries = fs::read_dir(folder).map_err(|source| LockError::io(folder, source))?;
    let mut names: Vec<String> =
        entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    Ok(names)
}

fn enabled(
    name: &str,
    path: &Path,
    request: &LockRequest<'_>,
    findings: &mut Findings,
) -> Option<CustomNode> {
    let what = What::CustomNode(name.to_owned());
    if path.is_file() {
        return carry(name, path, &Taken::All, None, findings);
    }
    let is_asked = request.carry.iter().any(|asked| asked == name);
    let repository = match LocalRepository::open(path) {
        Err(fault) => {
            findings.faults.push(Fault::Git { what, fault });
            return None;
        }
        Ok(Some(repository)) => repository,
        Ok(None) => return no_repository(name, path, is_asked, findings),
    };
    if is_asked {
        return carry(name, path, &Taken::Repository(&repository), None, findings);
    }
    let changes = Changes::of(&what, &repository, findings);
    if request.carry_dirty && changes.are_any() {
        return carry(name, path, &Taken::Repository(&repository), None, findings);
    }
    changes.tell(what.clone(), findings);
    let GitPin { url, commit, mirrors } = pin(what, &repository, findings)?;
    let folder = recorded_folder(&url, name);
    let node = CustomNode::Git { url, commit, mirrors, folder, disabled: false };
    if node.name() != name {
        findings.notes.push(format!(
            "custom node `{name}` becomes `custom_nodes/{}`, as `git clone` names it: its own name is more than letters, \
             digits and `._+!-`",
            node.name()
        ));
    }
    Some(node)
}

/// What is recorded of the name of a repository's folder: nothing where `git clone` calls it so, or where it is none that
/// a lockfile can have.
pub(super) fn recorded_folder(url: &GitUrl, name: &str) -> Option<FileName> {
    if url.folder() == name { None } else { name.parse().ok() }
}

/// A folder that ComfyUI-Manager installed from the registry, which leaves a list of its files; or a bare one.
fn no_repository(name: &str, path: &Path, is_asked: bool, findings: &mut Findings) -> Option<CustomNode> {
    let what = What::CustomNode(name.to_owned());
    let project = fs::read_to_string(path.join("pyproject.toml")).ok();
    let project = project.and_then(|text| toml::from_str::<PyProject>(&text).ok());
    if let Some((PyProject { project }, listed)) = project.zip(fs::read_to_string(path.join(TRACKING)).ok()) {
        let id = kept(&what, project.name.trim().to_lowercase().parse(), findings)?;
        let version = kept(&what, project.version.parse(), findings)?;
        let registry = Some(RegistryPin { id, version });
        // Its own files, and not what it downloaded or what was set in it.
        let taken = if is_asked { Taken::All } else { Taken::listed(TRACKING, &listed) };
        return carry(name, path, &taken, registry, findings);
    }
    if is_asked {
        return carry(name, path, &Taken::All, None, findings);
    }
    // ComfyUI loads no folder without it.
    if path.join("__init__.py").is_file() {
        findings.faults.push(Fault::BareFolder { name: name.to_owned() });
    }
    None
}

/// What is switched off is recorded as far as a lockfile can, and never stands in the way.
fn disabled(name: &str, path: &Path, findings: &mut Findings) -> Option<CustomNode> {
    let recorded = if path.is_file() {
        name.parse().ok().map(|name| CustomNode::File { name, disabled: true })
    } else {
        let repository = LocalRepository::open(path).ok().flatten();
        repository.and_then(|repository| {
            let mut urls = Upstreams::of(&repository).urls;
            let mirrors = urls.split_off(urls.len().min(1));
            let commit = repository.commit().ok()??;
            Some(CustomNode::Git { url: urls.pop()?, commit, mirrors, folder: None, disabled: true })
        })
    };
    if recorded.is_none() {
        findings.notes.push(format!("custom node `{name}` is switched off and left out"));
    }
    recorded
}

/// A text that was checked, or the fault that it is none.
pub(super) fn kept<T>(what: &What, parsed: Result<T, ParseTextError>, findings: &mut Findings) -> Option<T> {
    parsed.map_err(|fault| findings.faults.push(Fault::Text { what: what.clone(), fault })).ok()
}

/// Of one upstream that is there twice, what is switched on counts.
fn without_doubles(nodes: Vec<CustomNode>) -> Vec<CustomNode> {
    let is_on = |wanted: &GitUrl| {
        let on =
            |node: &CustomNode| matches!(node, CustomNode::Git { url, disabled: false, .. } if url == wanted);
        nodes.iter().any(on)
    };
    let is_double =
        |node: &CustomNode| matches!(node, CustomNode::Git { url, disabled: true, .. } if is_on(url));
    nodes.iter().filter(|node| !is_double(node)).cloned().collect()
}

/// What a `pyproject.toml` says of a custom node.
#[derive(Deserialize)]
struct PyProject {
    project: Project,
}

#[derive(Deserialize)]
struct Project {
    name: String,
    version: String,
}
