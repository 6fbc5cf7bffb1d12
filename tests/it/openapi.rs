//! The OpenAPI documents, in the eyes of a public validator.

use farm_tests::{Farm, FarmOptions, validator_python};
use serde_json::Value;
use tokio::process::Command;

#[tokio::test]
async fn documents_of_the_farm_and_of_a_workflow_pass_a_public_validator() -> anyhow::Result<()> {
    let Some(python) = validator_python() else { return Ok(()) };
    let farm = Farm::with_example(FarmOptions { nodes: 0, ..FarmOptions::default() }).await?;
    for path in ["/v1/openapi.json", "/v1/workflows/pixelate/openapi.json"] {
        let document = farm.get(path).await?;
        assert!(document["openapi"].as_str().is_some_and(|version| version.starts_with("3.1")), "{path}");
        let file = farm.folder.path().join("openapi.json");
        std::fs::write(&file, document.to_string())?;
        let output = Command::new(&python).args(["-m", "openapi_spec_validator"]).arg(&file).output().await?;
        let words =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{path}: {words}");
    }
    Ok(())
}

#[tokio::test]
async fn document_of_a_workflow_names_inputs_and_outputs() -> anyhow::Result<()> {
    let farm = Farm::with_example(FarmOptions { nodes: 0, ..FarmOptions::default() }).await?;
    let document = farm.get("/v1/workflows/pixelate/openapi.json").await?.to_string();
    for word in ["picture", "columns", "rows", "pixelated", "image/png", "multipart/form-data"] {
        assert!(document.contains(word), "`{word}` is missing");
    }
    let docs = farm.request(reqwest::Method::GET, "/docs/").send().await?;
    assert_eq!(docs.status(), 200);
    let docs = docs.text().await?;
    assert!(!docs.contains("https://"), "the docs page loads from elsewhere");
    let schema: Value = farm.get("/v1/workflows/pixelate/schema").await?;
    assert_eq!(schema["input_json_schema"]["properties"]["columns"]["minimum"], 4);
    Ok(())
}
