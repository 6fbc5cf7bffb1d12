//! ComfyUI and its custom nodes: which repository each is of, at which commit, and whether it is as that has
//! it.
//!
//! Not here: the Python packages that they need.

use std::fs;
use std::path::Path;

use protocol::{CustomNode, GitPin, GitUrl, MAX_MIRRORS, ParseTextError, RegistryPin};
use serde::Deserialize;

use super::carried::{Taken, carry};
use super::error::What;
use super::{Fault, Findings, LockError, LockRequest, some_of};
use crate::workspace::git::{Difference, LocalRepository, Remote};

/// The folders of ComfyUI that are its user's: what differs there is no other ComfyUI.
const OF_THE_USER: [&str; 8] =
    ["models/", "input/", "output/", "temp/", "user/", "custom_nodes/", "venv/", ".venv/"];
/// The endings of code: a new file of another kind changes nothing that runs.
const CODE: [&str; 5] = [".py", ".so", ".pyd", ".cu", ".js"];
/// Where ComfyUI-Manager keeps what it switched off.
const SWITCHED_OFF: &str = ".disabled";
/// The list of its files in what ComfyUI-Manager installed from the registry.
const TRACKING: &str = ".tracking";
/// How many differing files are named.
const NAMED: usize = 3;

/// The commit of ComfyUI itself.
pub(super) fn comfyui(folder: &Path, findings: &mut Findings) -> Option<GitPin> {
    match LocalRepository::open(folder) {
        Ok(Some(repository)) => {
            let is_own = |path: &str| !OF_THE_USER.iter().any(|folder| path.starts_with(folder));
            let changed = changes(&What::ComfyUi, &repository, is_own, findings);
            findings.faults.extend(changed.map(|files| Fault::Changed { what: What::ComfyUi, files }));
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
    match changes(&what, &repository, |_| true, findings) {
        Some(_) if request.carry_dirty => {
            return carry(name, path, &Taken::Repository(&repository), None, findings);
        }
        Some(files) => findings.faults.push(Fault::Changed { what: what.clone(), files }),
        None => {}
    }
    let GitPin { url, commit, mirrors } = pin(what, &repository, findings)?;
    let rebuilt = url.folder();
    if rebuilt != name {
        findings
            .notes
            .push(format!("custom node `{name}` becomes `custom_nodes/{rebuilt}`, as `git clone` names it"));
    }
    Some(CustomNode::Git { url, commit, mirrors, disabled: false })
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
            Some(CustomNode::Git { url: urls.pop()?, commit, mirrors, disabled: true })
        })
    };
    if recorded.is_none() {
        findings.notes.push(format!("custom node `{name}` is switched off and left out"));
    }
    recorded
}

/// The remotes of a repository, as a lockfile has them.
pub(super) struct Upstreams {
    /// Each address once: first those that are known to have its commit, and of these such as everybody reaches.
    pub(super) urls: Vec<GitUrl>,
    /// How many are left out, which only its user reaches and nobody needs.
    left_out: usize,
    /// Why others are none that a lockfile can have.
    faults: Vec<ParseTextError>,
}

impl Upstreams {
    /// Those of this repository.
    pub(super) fn of(repository: &LocalRepository) -> Self {
        let (mut urls, mut faults): (Vec<(bool, GitUrl)>, _) = (Vec::new(), Vec::new());
        for Remote { url, has_commit } in repository.remotes() {
            match url.parse::<GitUrl>() {
                Ok(url) if urls.iter().any(|(_, known)| known.is_same(&url)) => {}
                Ok(url) => urls.push((has_commit, url)),
                Err(fault) => faults.push(fault),
            }
        }
        let all = urls.len();
        // What lies where, on the user's machine and in the network, is nobody's business.
        if urls.iter().any(|(has_commit, url)| *has_commit && url.is_public()) {
            urls.retain(|(_, url)| url.is_public());
        }
        let left_out = all - urls.len();
        urls.sort_by_key(|(has_commit, url)| (!has_commit, !url.is_public()));
        urls.truncate(1 + MAX_MIRRORS);
        Self { urls: urls.into_iter().map(|(_, url)| url).collect(), left_out, faults }
    }
}

/// The upstreams and commit of a repository.
fn pin(what: What, repository: &LocalRepository, findings: &mut Findings) -> Option<GitPin> {
    let Upstreams { mut urls, left_out, faults } = Upstreams::of(repository);
    let mirrors = urls.split_off(urls.len().min(1));
    let url = urls.pop();
    let not_recorded = |fault: &ParseTextError| format!("{what}: a remote is not recorded: {fault}");
    match &url {
        Some(_) => findings.notes.extend(faults.iter().map(not_recorded)),
        None if faults.is_empty() => findings.faults.push(Fault::NoRemote { what: what.clone() }),
        None => {
            let fault = |fault| Fault::Text { what: what.clone(), fault };
            findings.faults.extend(faults.into_iter().map(fault));
        }
    }
    if let Some(url) = &url
        && left_out > 0
    {
        findings.notes.push(format!(
            "{what}: {left_out} of its remotes, which not everybody reaches, are left out: `{url}` has the commit"
        ));
    }
    let commit = match repository.commit() {
        Ok(Some(commit)) => commit,
        Ok(None) => {
            findings.faults.push(Fault::NoCommit { what });
            return None;
        }
        Err(fault) => {
            findings.faults.push(Fault::Git { what, fault });
            return None;
        }
    };
    let url = url?;
    if ![&url].into_iter().chain(&mirrors).any(GitUrl::is_public) {
        findings.lacking.push(format!("{what}: `{url}` is no https address that everybody reaches"));
    }
    if !repository.is_published() {
        match what {
            // Nothing else could be done, and what is known here may be old.
            What::ComfyUi => findings.notes.push(format!(
                "{what} is at a commit that no branch of `{url}` is known to have here: nodes can fetch it only if it \
                 is pushed"
            )),
            What::CustomNode(_) => findings.faults.push(Fault::Unpublished { what, url: url.to_string() }),
        }
    }
    Some(GitPin { url, commit, mirrors })
}

/// The files of a repository that change what runs, in words; `None` where there are none.
fn changes(
    what: &What,
    repository: &LocalRepository,
    is_own: impl Fn(&str) -> bool,
    findings: &mut Findings,
) -> Option<String> {
    let differences = match repository.differences() {
        Ok(differences) => differences,
        Err(fault) => {
            findings.faults.push(Fault::Git { what: what.clone(), fault });
            return None;
        }
    };
    let changes = |difference: &Difference| {
        is_own(&difference.path) && (!difference.is_new || is_code(&difference.path))
    };
    let files = differences.iter().filter(|difference| changes(difference));
    let files: Vec<String> = files.map(|difference| format!("`{}`", difference.path)).collect();
    (!files.is_empty()).then(|| some_of(files, NAMED))
}

/// Whether a file of this path is code.
pub(super) fn is_code(path: &str) -> bool {
    CODE.iter().any(|ending| path.ends_with(ending))
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
