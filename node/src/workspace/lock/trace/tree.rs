//! A copy of ComfyUI and the custom nodes as a node would have them: what their commits have, and what travels.
//!
//! Not here: the Python that runs it, which is the author's own.

use std::fs;
use std::io::{self, Seek};
use std::path::{Path, PathBuf};

use protocol::CustomNode;

use super::TraceError;
use crate::os::file::link;
use crate::workspace::carried;
use crate::workspace::git::LocalRepository;
use crate::workspace::lock::repositories::{Upstreams, recorded_folder};
use crate::workspace::lock::{LockRequest, Locked};

/// What writes down which addresses the process asks for.
const LISTENER: &str = include_str!("prestartup_script.py");
/// The custom node that it is in.
pub(super) const LISTENER_FOLDER: &str = "custom_nodes/comfy_farm_trace";

/// Where the parts of a workspace lie.
pub(super) struct Tree {
    /// The code.
    pub(super) comfyui: PathBuf,
    /// The models of the lockfile, at their places.
    pub(super) files: PathBuf,
}

impl Tree {
    /// Makes it.
    pub(super) fn lay_out(&self, request: &LockRequest<'_>, locked: &Locked) -> Result<(), TraceError> {
        let fail = |source| TraceError::Io { path: self.comfyui.clone(), source };
        let custom_nodes = request.comfyui.join("custom_nodes");
        let Some(comfyui) = LocalRepository::open(request.comfyui)? else {
            return Err(fail(io::Error::from(io::ErrorKind::NotFound)));
        };
        comfyui.copy_to(&self.comfyui).map_err(fail)?;
        let own = self.comfyui.join("custom_nodes");
        fs::create_dir_all(&own).map_err(fail)?;
        for entry in fs::read_dir(&custom_nodes).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            let is_on = !name.ends_with(".disabled");
            let repository = is_on.then(|| LocalRepository::open(&entry.path())).transpose()?.flatten();
            let Some(repository) = repository else { continue };
            let Upstreams { urls, .. } = Upstreams::of(&repository);
            let Some(own_url) = urls.first() else { continue };
            let is_it = |node: &&CustomNode| match node {
                CustomNode::Git { url, folder, disabled: false, .. } => {
                    url == own_url && *folder == recorded_folder(own_url, &name)
                }
                _ => false,
            };
            let travels = locked.carried.iter().any(|node| node.name.as_str() == name);
            let node = locked.lockfile.custom_nodes.iter().find(is_it);
            if let Some(node) = node.filter(|_| !travels) {
                repository.copy_to(&own.join(node.name())).map_err(fail)?;
            }
        }
        for node in &locked.carried {
            let mut archive = &node.archive;
            archive.rewind().map_err(fail)?;
            carried::unpack(&node.name, archive, &own)
                .map_err(|source| TraceError::Carried { name: node.name.to_string(), source })?;
            archive.rewind().map_err(fail)?;
        }
        let listener = self.comfyui.join(LISTENER_FOLDER);
        fs::create_dir_all(&listener).map_err(fail)?;
        fs::write(listener.join("prestartup_script.py"), LISTENER).map_err(fail)?;
        fs::write(listener.join("__init__.py"), "NODE_CLASS_MAPPINGS = {}\n").map_err(fail)?;
        link_models(locked, &self.files).map_err(fail)
    }
}

/// Links the models of a lockfile to where they lie.
fn link_models(locked: &Locked, files: &Path) -> io::Result<()> {
    fs::create_dir_all(files)?;
    for (model, file) in locked.lockfile.models.iter().zip(&locked.model_files) {
        link(&fs::canonicalize(file)?, &files.join(model.path.as_str()))?;
    }
    Ok(())
}
