import assert from 'node:assert/strict';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { after, describe, it } from 'node:test';
import { type ErrorCode, isCoded } from '../base/errors.ts';
import { canonicalJson, type Json } from '../base/json.ts';
import { writeExtension } from '../testing/extension-folder.ts';
import { EXTENSION_PAYLOAD_TYPE } from '../wire/extension.ts';
import { type HostNode, type NodeConfig, openNode } from './node.ts';

const base = await mkdtemp(join(tmpdir(), 'node-'));
after(() => rm(base, { recursive: true, force: true }));

const code =
  (...codes: ErrorCode[]) =>
  (error: unknown) =>
    isCoded(error, ...codes);

/** A network whose proofs are real and cheap. */
const CHEAP = {
  space: { bytesMin: 2 ** 20, deadlineMs: 60_000, openings: 4 },
  stake: { amountMin: 1 },
  work: { hexDigits: 1 },
  time: { squarings: 4_096, windowMs: 300_000 },
};
const config: NodeConfig = {
  home: join(base, 'home'),
  subject: 'ada',
  network: {
    space: { bytes: 2 ** 20, iterations: 2 },
    requirements: {
      publish: { kind: 'publish', ...CHEAP },
      install: { kind: 'install', ...CHEAP },
      execute: { kind: 'execute', ...CHEAP },
      default: { kind: 'default', ...CHEAP },
    },
  },
};

async function keeper(node: HostNode) {
  const folder = await writeExtension(base, {
    id: 'keeper',
    needs: ['state', 'monitoring'],
    members: `
      async handleRequest({ id: requestId, method, params }) {
        if (method === 'write') await lent.state.write(params);
        if (method === 'write') await lent.monitoring.emit({ type: 'keeper.wrote', data: params });
        return { requestId, ok: true, data: (await lent.state.get('kept')) ?? null };
      },
      async exportState() {
        return { version: 1, extension: 'keeper', data: (await lent.state.get('kept')) ?? null, checksum: 'x', exportedAtMs: 1 };
      },
      async importState({ data }) { await lent.state.write({ kept: data }); },`,
  });
  await node.extensions.load({ folder }, { grants: ['state', 'monitoring'] });
  return async (method: string, params: Json = {}) => {
    const response = await node.extensions.route('keeper', { id: 'r', method, params });
    return response.ok ? response.data : assert.fail(response.error.message);
  };
}

describe('openNode()', () => {
  it('opens a home, lends to extensions, exports, imports, and is the same node when opened again', async () => {
    let first: Awaited<ReturnType<HostNode['status']>>;
    let exported: Uint8Array[];
    {
      await using node = await openNode(config);
      await assert.rejects(openNode(config), code('home-in-use'));
      first = await node.status();
      assert.match(first.networkId, /^sha256:[0-9a-f]{64}$/);
      assert.match(first.publisher.subject, /ada/);
      assert.equal(first.totals.versions, 0);
      assert.equal(first.pid, process.pid);

      const ask = await keeper(node);
      await ask('write', { kept: 'before' });
      const [event] = await Array.fromAsync(node.monitoring.events({ pattern: 'keeper.*' }));
      assert.equal(event!.source, 'keeper');
      const calls = await node.getMetrics('extension.calls');
      assert.ok(calls.some(({ tags }) => tags['capability'] === 'state.write' && tags['outcome'] === 'ok'));

      exported = await Array.fromAsync(node.exportState());
      await ask('write', { kept: 'after' });
      const damaged = exported.map((piece) => piece.slice());
      damaged.at(-1)![0]! ^= 1;
      await assert.rejects(node.importState(stream(damaged)), code('state-invalid'));
      assert.equal(await ask('read'), 'after', 'a refused import changes nothing');
      await node.importState(stream(exported));
      assert.equal(await ask('read'), 'before');
    }
    await using again = await openNode(config);
    const { networkId, publisher } = await again.status();
    assert.deepEqual({ networkId, publisher }, { networkId: first.networkId, publisher: first.publisher });
    const ask = await keeper(again);
    assert.equal(await ask('read'), 'before');
  });

  it('opens a home without opening its secret keys: an idle node holds none', async () => {
    const home = join(base, 'sealed');
    {
      await using node = await openNode({ ...config, home });
      await node.consensus.commitSpace();
    }
    const raw = new DatabaseSync(join(home, 'trust', 'trust.db'));
    raw.exec(
      `UPDATE keystore SET sealed = json_set(sealed, '$.ciphertext', 'AAAA' || substr(sealed ->> 'ciphertext', 5))`,
    );
    raw.close();
    await using node = await openNode({ ...config, home });
    await node.status();
    assert.equal((await node.consensus.space()).state, 'ready');
    await assert.rejects(node.trust.sign('publisher', 'text/plain', new Uint8Array()), code('key-invalid'));
  });

  it('loads only extensions that a trusted publisher signed, when told so', async () => {
    await using node = await openNode(config);
    const identity = await node.trust.identity('publisher');
    const folder = await writeExtension(base, { id: 'signed' });
    const manifest = await readFile(join(folder, 'extension.json'));
    const envelope = await node.trust.sign('publisher', EXTENSION_PAYLOAD_TYPE, new Uint8Array(manifest));
    const signature = canonicalJson({ envelope, chain: identity.chain });
    await node[Symbol.asyncDispose]();

    const strict = { requireSignature: true, trustedPublishers: [identity.keyId] };
    await using careful = await openNode({ ...config, extensions: strict });
    const load = () => careful.extensions.load({ folder }, { grants: [] });
    await assert.rejects(load(), code('extension-invalid'));
    const file = join(folder, 'extension.sig.json');
    const altered = signature.replace(/"sig":"(.)/, (_all, first: string) => `"sig":"${first === 'A' ? 'B' : 'A'}`);
    await writeFile(file, altered);
    await assert.rejects(load(), code('signature-invalid', 'extension-invalid'));
    await writeFile(file, signature);
    await load();
    assert.equal(careful.extensions.list()[0]!.signer, identity.keyId);
    await careful.extensions.unload('signed');
    await writeFile(join(folder, 'extension.json'), `${manifest.toString()} `);
    await assert.rejects(load(), code('extension-invalid'), 'the signature is over other bytes');
    await careful[Symbol.asyncDispose]();

    await writeFile(join(folder, 'extension.json'), manifest);
    const other = { requireSignature: true, trustedPublishers: ['somebody else'] };
    await using distrustful = await openNode({ ...config, extensions: other });
    await assert.rejects(distrustful.extensions.load({ folder }, { grants: [] }), code('extension-invalid'));
  });
});

async function* stream(pieces: readonly Uint8Array[]): AsyncGenerator<Uint8Array, void> {
  yield* pieces;
}
