import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after } from 'node:test';
import { systemClock } from '../base/clock.ts';
import type { CapabilityName } from '../capabilities/extension.ts';
import { openMonitoring } from '../subsystems/monitoring/index.ts';
import { openState } from '../subsystems/state/index.ts';
import { testExtension } from '../testing/extension-conformance.ts';
import { Extensions } from './extensions.ts';

/** The example of docs/extensions.md, exactly as it stands there. */
const guide = await readFile(new URL('../../docs/extensions.md', import.meta.url), 'utf8');
const [, code] = /```js\n([\s\S]*?)```/.exec(guide)!;
const [, manifest] = /```json\n([\s\S]*?)```/.exec(guide)!;

const base = await mkdtemp(join(tmpdir(), 'guide-'));
after(() => rm(base, { recursive: true, force: true }));
const folder = join(base, 'counter');
await mkdir(folder);
await writeFile(join(folder, 'index.mjs'), code!);
await writeFile(join(folder, 'extension.json'), manifest!);
assert.ok(
  manifest!.includes(createHash('sha256').update(code!).digest('hex')),
  `docs/extensions.md must state ${createHash('sha256').update(code!).digest('hex')} for index.mjs`,
);

let serial = 0;
for (const mode of ['in-process', 'cell'] as const) {
  testExtension(`of the guide, ${mode}`, async () => {
    const directory = join(base, String(serial++));
    const stack = new AsyncDisposableStack();
    const clock = systemClock;
    const state = stack.use(await openState({ directory, clock }));
    const monitoring = stack.use(await openMonitoring({ directory, clock }));
    const capabilities = { state: state.space('counter'), monitoring: monitoring.for('counter') };
    const lendable = () => ({ capabilities, release: async () => {} });
    const extensions = stack.use(new Extensions({ lendable }, { version: '0.1.0' }));
    return {
      extensions,
      id: 'counter',
      needs: ['state', 'monitoring'],
      async load(grants: readonly CapabilityName[]) {
        const counter = await extensions.load({ folder }, { grants, settings: { step: 2 }, mode });
        const ask = { id: '1', method: 'count', params: {} };
        const { count } = (await counter.exportState()).data as { count: number };
        assert.deepEqual(await extensions.route('counter', ask), { requestId: '1', ok: true, data: count + 2 });
        return counter;
      },
      [Symbol.asyncDispose]: () => stack.disposeAsync(),
    };
  });
}
