// Submits one job through the page's form in a real Chromium and waits until its picture is shown.
//
//   COMFY_FARM_TEST_BROWSER=$(tests/browser/install) \
//     node tests/browser/submit.mjs URL KEY WORKFLOW PICTURE SCREENSHOT [LABEL=VALUE]...
//
// PICTURE goes into the form's first file field, or is `-` where there is none; each LABEL=VALUE into the field with that
// label. The screenshot is taken at the end, and when something goes wrong too; where a picture in the making was seen,
// there is one of that beside it, as SCREENSHOT.making.png. One line of JSON on stdout:
//   {"ok":true,"title":…,"previews":3,"pictures":[{"field":"output-…-0","width":64,"height":64}],"seconds":1.9}
//   {"ok":false,"error":…,"console":[…]}
// Exit code 0 only for the first. An error in the page's console or a failed request of the page is a failure.
// Whether the pixels are right is for the caller to say: this only sees that a picture was shown.
import { existsSync } from 'node:fs'
import { createRequire } from 'node:module'
import { delimiter, join, resolve } from 'node:path'

const PICTURE_WITHIN_MS = 90_000
const STEP_WITHIN_MS = 20_000

const FLAGS = [
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-gpu',
  '--disable-quic',
  '--disable-sync',
  '--no-first-run',
  ...(process.getuid() === 0 ? ['--no-sandbox'] : []),
]

function findChromium() {
  const names = ['chromium', 'chromium-browser', 'google-chrome']
  const folders = (process.env.PATH ?? '').split(delimiter)
  const found = folders.flatMap((folder) => names.map((name) => join(folder, name))).find(existsSync)
  if (!found) throw new Error('no Chromium in PATH: install the Debian package `chromium`')
  return found
}

function loadPlaywright() {
  const folder = process.env.COMFY_FARM_TEST_BROWSER
  if (!folder) throw new Error('COMFY_FARM_TEST_BROWSER is not set: it is what `tests/browser/install` prints')
  return createRequire(join(folder, 'package.json'))('playwright-core')
}

/** Collects what a person would see in red in the developer tools. */
function watchComplaints(page) {
  const complaints = []
  page.on('console', (message) => {
    if (message.type() === 'error') complaints.push(message.text())
  })
  page.on('pageerror', (error) => complaints.push(`uncaught: ${error.message}`))
  page.on('response', (response) => {
    if (response.status() >= 400) complaints.push(`${response.status()} for ${response.url()}`)
  })
  return complaints
}

async function signIn(page, url, key) {
  await page.goto(url)
  await page.getByLabel('Key', { exact: true }).fill(key)
  await page.getByRole('button', { name: 'Sign in' }).click()
  await page.getByRole('link', { name: 'Workflows' }).waitFor()
}

async function openForm(page, workflow) {
  await page.getByRole('link', { name: 'Workflows' }).click()
  await page.locator(`a[href="#/workflows/${workflow}"]`).first().click()
  await page.getByRole('button', { name: 'Run', exact: true }).waitFor()
}

async function fillForm(page, picture, fields) {
  if (picture !== null) await page.locator('input[type=file][data-testid^="input-"]').first().setInputFiles(picture)
  for (const field of fields) {
    const [label, ...value] = field.split('=')
    await fillControl(page.getByLabel(label), value.join('='))
  }
}

async function fillControl(control, value) {
  const kind = await control.evaluate((element) => element.type ?? element.localName)
  if (kind === 'select-one') await control.selectOption(value)
  else if (kind === 'checkbox') await control.setChecked(value === 'true')
  else await control.fill(value)
}

/** Waits until every output picture that is there has been decoded, and returns their sizes. */
async function waitForPictures(page) {
  const decoded = () => {
    const pictures = [...document.querySelectorAll('img[data-testid^="output-"]')]
    return pictures.length > 0 && pictures.every((picture) => picture.complete && picture.naturalWidth > 0)
  }
  await page.waitForFunction(decoded, undefined, { timeout: PICTURE_WITHIN_MS })
  return page.locator('img[data-testid^="output-"]').evaluateAll((pictures) =>
    pictures.map((picture) => ({
      field: picture.dataset.testid,
      width: picture.naturalWidth,
      height: picture.naturalHeight,
    })),
  )
}

/** Has the page note each picture in the making that it shows, once it is decoded. */
async function notePreviews(page) {
  await page.evaluate(() => {
    window.seenPreviews = new Set()
    const note = ({ target }) => {
      if (target.dataset?.testid === 'preview' && target.naturalWidth > 0) window.seenPreviews.add(target.src)
    }
    document.addEventListener('load', note, { capture: true })
  })
}

/** How many different ones were shown. None may be left beside the picture that replaces it. */
async function countPreviews(page) {
  const left = await page.getByTestId('preview').count()
  if (left > 0) throw new Error('a picture in the making is still shown beside the final one')
  return page.evaluate(() => window.seenPreviews.size)
}

async function submit(page, { url, key, workflow, picture, fields, screenshot }) {
  await signIn(page, url, key)
  await openForm(page, workflow)
  await fillForm(page, picture, fields)
  await notePreviews(page)
  await page.getByRole('button', { name: 'Run', exact: true }).click()
  const making = page.getByTestId('preview').waitFor({ timeout: PICTURE_WITHIN_MS })
  const shown = making.then(() => page.screenshot({ path: `${screenshot}.making.png`, fullPage: true })).catch(() => {})
  const pictures = await waitForPictures(page)
  const previews = await countPreviews(page)
  if (previews > 0) await shown
  return { previews, pictures }
}

async function main() {
  const [url, key, workflow, picture, screenshot, ...fields] = process.argv.slice(2)
  if (!screenshot) throw new Error('usage: submit.mjs URL KEY WORKFLOW PICTURE SCREENSHOT [LABEL=VALUE]...')
  const started = Date.now()
  const { chromium } = loadPlaywright()
  const browser = await chromium.launch({ executablePath: findChromium(), args: FLAGS })
  try {
    const page = await browser.newPage({ viewport: { width: 1280, height: 900 } })
    page.setDefaultTimeout(STEP_WITHIN_MS)
    const complaints = watchComplaints(page)
    try {
      const file = picture === '-' ? null : resolve(picture)
      const made = await submit(page, { url, key, workflow, picture: file, fields, screenshot })
      if (complaints.length > 0) throw new Error('the page complained')
      return { ok: true, title: await page.title(), ...made, seconds: (Date.now() - started) / 1000 }
    } catch (error) {
      return { ok: false, error: error.message, console: complaints }
    } finally {
      await page.screenshot({ path: screenshot, fullPage: true })
    }
  } finally {
    await browser.close()
  }
}

const report = await main().catch((error) => ({ ok: false, error: error.message, console: [] }))
console.log(JSON.stringify(report))
process.exitCode = report.ok ? 0 : 1
