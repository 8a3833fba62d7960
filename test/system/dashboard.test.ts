import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { existsSync } from 'node:fs';
import { test } from 'node:test';
import { type Browser, chromium, type Page } from 'playwright-core';
import { type MeshNode, mesh, QUICK_PACE } from '../network/mesh.ts';
import { freshHome, nodeOf, writePackage } from './support.ts';

const BROWSER = ['/usr/bin/chromium', '/usr/bin/chromium-browser', '/usr/bin/google-chrome'].find((path) =>
  existsSync(path),
);
const SKIP = BROWSER === undefined ? 'no Chromium on this machine' : false;

test('the status page shows the node, finds packages, follows events, and breaks no rule of its own policy', {
  skip: SKIP,
  timeout: 900_000,
}, async () => {
  await using home = await freshHome();
  const { http } = await home.json<{ http: string }>(['up', '--detach']);
  const hostile = '<img src=x onerror=alert(1)> a description';
  const manifest = { name: 'page/first', version: '1.0.0', type: 'library', description: hostile };
  await home.json(['publish', await writePackage(`${home.folder}/first`, manifest)]);

  await using browser = await openBrowser();
  const { page, problems } = await watchedPage(browser, http);
  await page.getByText('page/first').first().waitFor();
  await page.getByText(hostile).waitFor();
  assert.equal(await page.locator('img[src="x"]').count(), 0, 'a description became markup');

  await home.json(['publish', await writePackage(`${home.folder}/second`, { ...manifest, name: 'page/second' })]);
  await page.getByText('page/second').first().waitFor();
  await shots(page, 'alone');

  await page.getByRole('searchbox').or(page.getByRole('textbox')).first().fill('second');
  await page.getByText('1 package', { exact: true }).waitFor();
  assert.equal(await page.getByRole('heading', { name: 'Network' }).isVisible(), false, 'this home is alone');
  assert.deepEqual(problems, []);

  const refused = await browser.newPage();
  await refused.route('**/v1/events*', (route) => route.fulfill({ status: 410 }), { times: 1 });
  await refused.goto(http);
  await refused.getByText('catalog.published').first().waitFor();
});

test('the status page of a member shows the other nodes, what moves between them, and packages with too few copies', {
  skip: SKIP,
  timeout: 900_000,
}, async () => {
  await using stack = new AsyncDisposableStack();
  // Two homes of a network, and content that takes a while to the second.
  const [first, second] = (await mesh(stack, 2, (at) => ({
    peers: { pace: QUICK_PACE, ...(at === 1 ? { downloadBytesPerSecond: 2 ** 20 } : {}) },
  }))) as [MeshNode, MeshNode];
  const browser = stack.use(await openBrowser());
  const { page, problems } = await watchedPage(browser, (await nodeOf(second)).http);
  await page.getByRole('heading', { name: 'Network' }).waitFor();
  const peers = page.getByRole('list', { name: 'Nodes' }).getByRole('listitem');
  await peers.filter({ hasText: first.id }).filter({ hasText: 'alive' }).waitFor();
  await peers.filter({ hasText: second.id }).filter({ hasText: 'this node' }).waitFor();
  await page.getByText('1 of 1other nodes answer').waitFor();
  const committee = page.getByRole('list', { name: 'Committee' }).getByRole('listitem');
  await committee.filter({ hasText: 'answers' }).waitFor();

  const files = { 'large.bin': randomBytes(8 * 2 ** 20) };
  await first.publish(
    await writePackage(`${first.folder}/large`, { name: 'page/large', version: '1.0.0', type: 'library' }, files),
  );
  const moving = page.getByRole('list', { name: 'Moving now' }).getByRole('listitem');
  const arrives = new RegExp(`^page/large@1\\.0\\.0arrives.* of 8\\.0 MiB, .*/s.*from ${first.id.slice(0, 16)}$`, 's');
  await moving.filter({ hasText: arrives }).waitFor();
  await page.getByText('page/large').first().waitFor();
  await shots(page, 'network');
  await page.getByText('Nothing.').waitFor();
  await peers
    .filter({ hasText: first.id })
    .filter({ hasText: /[89]\.\d MiB in/ })
    .waitFor();

  await first.end('SIGKILL');
  await peers.filter({ hasText: first.id }).filter({ hasText: 'away' }).waitFor();
  assert.deepEqual(problems, []);
});

function openBrowser(): Promise<Browser> {
  return chromium.launch({
    executablePath: BROWSER!,
    args: [
      '--no-sandbox',
      '--disable-gpu',
      '--disable-quic',
      '--disable-background-networking',
      '--disable-component-update',
    ],
  });
}

async function watchedPage(browser: Browser, http: string): Promise<{ page: Page; problems: readonly string[] }> {
  const page = await browser.newPage();
  const problems: string[] = [];
  page.on('pageerror', (error) => problems.push(error.message));
  page.on('console', (message) => {
    if (message.type() === 'error') problems.push(message.text());
  });
  await page.goto(`${http}/`);
  return { page, problems };
}

/** Pictures for whoever wants to look: HYPERMESH_SHOTS=/folder. Nothing is wider than the page, whatever its width. */
async function shots(page: Page, name: string): Promise<void> {
  const folder = process.env['HYPERMESH_SHOTS'];
  for (const width of [1200, 420]) {
    for (const colorScheme of ['light', 'dark'] as const) {
      await page.emulateMedia({ colorScheme });
      await page.setViewportSize({ width, height: 900 });
      assert.ok(await page.evaluate('document.documentElement.scrollWidth <= innerWidth'), `wider than ${width}`);
      if (folder !== undefined)
        await page.screenshot({ path: `${folder}/${name}-${width}-${colorScheme}.png`, fullPage: true });
    }
  }
}
