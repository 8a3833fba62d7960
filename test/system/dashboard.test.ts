import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { test } from 'node:test';
import { chromium } from 'playwright-core';
import { freshHome, writePackage } from './support.ts';

const BROWSER = ['/usr/bin/chromium', '/usr/bin/chromium-browser', '/usr/bin/google-chrome'].find((path) =>
  existsSync(path),
);

test('the status page shows the node, finds packages, follows events, and breaks no rule of its own policy', {
  skip: BROWSER === undefined ? 'no Chromium on this machine' : false,
  timeout: 120_000,
}, async () => {
  await using home = await freshHome();
  const { http } = await home.json<{ http: string }>(['up', '--detach']);
  const hostile = '<img src=x onerror=alert(1)> a description';
  const manifest = { name: 'page/first', version: '1.0.0', type: 'library', description: hostile };
  await home.json(['publish', await writePackage(`${home.folder}/first`, manifest)]);

  const browser = await chromium.launch({
    executablePath: BROWSER!,
    args: [
      '--no-sandbox',
      '--disable-gpu',
      '--disable-quic',
      '--disable-background-networking',
      '--disable-component-update',
    ],
  });
  try {
    const page = await browser.newPage();
    const problems: string[] = [];
    page.on('pageerror', (error) => problems.push(error.message));
    page.on('console', (message) => {
      if (message.type() === 'error') problems.push(message.text());
    });
    await page.goto(`${http}/`);
    await page.getByText('page/first').first().waitFor();
    await page.getByText(hostile).waitFor();
    assert.equal(await page.locator('img[src="x"]').count(), 0, 'a description became markup');

    await home.json(['publish', await writePackage(`${home.folder}/second`, { ...manifest, name: 'page/second' })]);
    await page.getByText('page/second').first().waitFor();

    await page.getByRole('searchbox').or(page.getByRole('textbox')).first().fill('second');
    await page.getByText('1 package', { exact: true }).waitFor();
    assert.deepEqual(problems, []);
  } finally {
    await browser.close();
  }
});
