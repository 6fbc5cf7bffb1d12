//! The owner of a managed node at the command line: whom the node trusts, and what becomes of its workspaces.

use std::time::Duration;

use anyhow::Context;
use farm_tests::{Farm, FarmOptions, Process, Studio, eventually, eventually_within};
use serde_json::{Value, json};

/// How long it may take beside other work to lay out code and to start ComfyUI.
const REBUILD: Duration = Duration::from_secs(300);

/// Runs a command, and gives its exit code and all that it said.
async fn comfy_farm(arguments: &[&str]) -> anyhow::Result<(Option<i32>, String)> {
    let folder = tempfile::tempdir()?;
    let output = Process::comfy_farm(folder.path(), arguments).output().await?;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ok((output.status.code(), text(output.stdout) + &text(output.stderr)))
}

/// The node's only workspace, once it is in this state.
async fn workspace(data: &str, state: &str) -> anyhow::Result<Value> {
    eventually(|| async {
        let (_, listed) = comfy_farm(&["workspace", "ls", "--json", "--data", data]).await?;
        let listed: Value = serde_json::from_str(&listed)?;
        Ok(Some(listed["workspaces"][0].clone()).filter(|workspace| workspace["state"] == state))
    })
    .await
}

/// What the owner of a node does with two real workspaces that share an environment; a ComfyUI idles in the second.
pub(crate) async fn look_after(data: &str, idle: &str, at_work: &str) -> anyhow::Result<()> {
    let run =
        async |arguments: &[&str]| comfy_farm(&[&["workspace"], arguments, &["--data", data]].concat()).await;
    let list = async || -> anyhow::Result<Vec<Value>> {
        let listed: Value = serde_json::from_str(&run(&["ls", "--json"]).await?.1)?;
        Ok(listed["workspaces"].as_array().cloned().unwrap_or_default())
    };
    let find = |listed: &[Value], name: &str| {
        let found = listed.iter().find(|workspace| workspace["workflows"][0] == name).cloned();
        found.with_context(|| format!("`{name}` is not in {listed:?}"))
    };
    let listed = list().await?;
    let (idle, at_work) = (find(&listed, idle)?, find(&listed, at_work)?);
    assert!(idle["at_work"] == false && at_work["at_work"] == true, "{idle} {at_work}");
    assert!(
        idle["own_bytes"].as_u64() < idle["python_bytes"].as_u64(),
        "the environment is not its own: {idle}"
    );
    let (idle, at_work) = (&idle["lockfile"], &at_work["lockfile"]);
    let (idle, at_work) = (idle.as_str().unwrap_or_default(), at_work.as_str().unwrap_or_default());
    for lockfile in [idle, at_work] {
        let (code, said) = run(&["verify", lockfile]).await?;
        assert_eq!((code, said), (Some(0), format!("{lockfile} is what its lockfile says\n")));
    }
    let (code, said) = run(&["rm", at_work]).await?;
    assert!(code == Some(7) && said.contains("is at work"), "{said}");
    // One that cannot come up is tried again now and then.
    let (code, said) = eventually(|| async {
        let ran = run(&["rm", idle]).await?;
        Ok(Some(ran).filter(|(_, said)| !said.contains("is being built")))
    })
    .await?;
    assert!(code == Some(0) && said.starts_with(&format!("removed {idle}\n1 workspaces of ")), "{said}");
    // It is wanted, and all but its own code is here.
    eventually_within(REBUILD, || async {
        let listed = list().await?;
        Ok(listed
            .into_iter()
            .find(|workspace| workspace["lockfile"] == idle && workspace["state"] == "loaded"))
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn owner_trusts_a_publisher_and_looks_after_what_was_begun_for_it() -> anyhow::Result<()> {
    let mut farm = Farm::start(FarmOptions { nodes: 0, ..FarmOptions::default() }).await?;
    farm.start_node(&["--engine", "managed", "--allow-private-origins", "--no-sandbox"]).await?;
    let data = farm.nodes[0].data.display().to_string();
    let at = |name: &str| farm.folder.path().join(name).display().to_string();
    let lockfile = json!({
        "format": 1,
        "comfyui": { "url": format!("file://{}", at("nowhere")), "commit": "1".repeat(40) },
    });
    let graph = json!({ "1": { "class_type": "SaveImage", "inputs": { "images": ["2", 0] } },
                        "2": { "class_type": "EmptyImage", "inputs": { "width": 8 } } });
    let bundle = Studio::new(farm.folder.path(), farm.folder.path()).bundle("blank", &graph, &lockfile)?;
    let (key, bundle_text) = (at("me.key"), bundle.display().to_string());
    let (_, publisher) = comfy_farm(&["publisher", "new", "-o", &key]).await?;
    let publisher = publisher.trim();
    let (code, said) = comfy_farm(&["publisher", "sign", &bundle_text, "--key", &key]).await?;
    assert_eq!(code, Some(0), "{said}");
    farm.deploy(&bundle, "blank", &[("output", "1"), ("keep_signature", "true")]).await?;

    let refused = workspace(&data, "refused").await?;
    let reason = refused["detail"].as_str().unwrap_or_default();
    assert!(reason.contains(&format!("`comfy-farm publisher trust {publisher}`")), "{refused}");
    let (code, said) = comfy_farm(&["publisher", "trust", publisher, "--data", &data]).await?;
    assert_eq!(code, Some(0), "{said}");
    let failed = workspace(&data, "failed").await?;
    assert!(failed["detail"].as_str().unwrap_or_default().starts_with("code: "), "{failed}");
    assert_eq!((&failed["wanted"], &failed["workflows"]), (&json!(true), &json!(["blank@1"])));

    let owner = async |arguments: &[&str], code: i32, words: &str| -> anyhow::Result<()> {
        let arguments = [&["workspace"], arguments, &["--data", &data]].concat();
        let (ended, said) = comfy_farm(&arguments).await?;
        assert!(ended == Some(code) && said.contains(words), "{arguments:?}: {ended:?} {said}");
        Ok(())
    };
    let short = &failed["lockfile"].as_str().unwrap_or_default()[..16];
    owner(&["ls"], 0, &format!("{short}  blank@1    failed  yes")).await?;
    owner(&["verify"], 1, "it was never installed").await?;
    owner(&["rm", "nothing"], 6, "no workspace here").await?;
    owner(&["rm", "--unused"], 0, "0 workspaces").await?;
    farm.nodes[0].process.kill().await;
    owner(&["ls"], 0, "incomplete  ?").await?;
    owner(&["rm", "--unused"], 7, "known only to a node").await?;
    owner(&["rm", short], 0, "1 workspaces").await?;
    owner(&["rm", short], 6, "no workspace here").await?;
    Ok(())
}
