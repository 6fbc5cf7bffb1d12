//! `comfy-farm workspace verify`.

use anyhow::bail;
use node::workspace::care::{CareReply, CareRequest, VerifiedWorkspace};
use serde_json::json;

use super::{VerifyArguments, ask};
use crate::failure::Failure;
use crate::show;

/// How many files of a part are named.
const SHOWN: usize = 20;

pub(super) async fn verify(arguments: &VerifyArguments) -> anyhow::Result<()> {
    let request = CareRequest::Verify { lockfile: arguments.lockfile.clone() };
    let CareReply::Verified(verified) = ask(&arguments.node, request).await? else {
        bail!("the process answered something else: it may be of another version");
    };
    if arguments.json {
        show::json(&json!({ "workspaces": verified }));
    } else {
        verified.iter().for_each(tell);
    }
    match verified.iter().filter(|workspace| !workspace.is_good()).count() {
        0 => Ok(()),
        bad => {
            Err(Failure::DamagedWorkspace(format!("{bad} workspaces are not what their lockfiles say"))
                .into())
        }
    }
}

fn tell(workspace: &VerifiedWorkspace) {
    if workspace.is_good() {
        println!("{} is what its lockfile says", workspace.lockfile);
        return;
    }
    println!("{} is not what its lockfile says:", workspace.lockfile);
    let parts = [("code", &workspace.code), ("Python", &workspace.python), ("model", &workspace.models)];
    for (part, faults) in parts {
        faults.iter().take(SHOWN).for_each(|fault| println!("  {part:6}  {fault}"));
        if faults.len() > SHOWN {
            println!("  {part:6}  and {} more", faults.len() - SHOWN);
        }
    }
    println!(
        "  `comfy-farm workspace rm {}` removes it with what is damaged, and a node that is to have it builds it anew",
        workspace.lockfile
    );
}
