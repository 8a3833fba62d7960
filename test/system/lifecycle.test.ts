import assert from 'node:assert/strict';
import { readdir, stat } from 'node:fs/promises';
import { join, sep } from 'node:path';
import { test } from 'node:test';
import { HyperMesh } from '../../src/index.ts';
import { PROJECT, SMALL_NETWORK, temporaryFolder } from './support.ts';

/** The specification's lifecycle example, less distribution and proxy, against the programmatic interface. */
test('the lifecycle of a package: sign, publish, install, execute, observe, export, import', async () => {
  await using folder = await temporaryFolder();
  const examples = join(PROJECT, 'examples', 'packages');

  const backup: Uint8Array[] = [];
  let greeter: string;
  {
    await using hypermesh = await HyperMesh.create({
      home: join(folder.path, 'home'),
      network: SMALL_NETWORK,
      passphrase: 'only in this test',
    });
    const catalog = await hypermesh.loadExtension('catalog');

    await catalog.publishPackage(await catalog.signPackage(await hypermesh.stageFolder(join(examples, 'phrases'))));
    const signed = await catalog.signPackage(await hypermesh.stageFolder(join(examples, 'greeter')));
    assert.equal(signed.envelope.signatures.length, 2);
    const published = await catalog.publishPackage(signed);
    assert.deepEqual(published.proofs.map(({ kind, verdict }) => [kind, verdict]).sort(), [
      ['space', 'valid'],
      ['stake', 'valid'],
      ['time', 'valid'],
      ['work', 'valid'],
    ]);
    greeter = published.id;

    const again = await catalog.publishPackage(signed);
    assert.deepEqual([again.created, again.digest], [false, published.digest]);

    const found = await catalog.search({ text: 'greet' });
    assert.deepEqual(found.hits.map((hit) => hit.record.name)[0], 'hello/greeter');

    const { installed } = await catalog.install(['hello/greeter'], { root: join(folder.path, 'here') });
    assert.deepEqual(installed.map((entry) => entry.name).sort(), ['hello/greeter', 'hello/phrases']);

    const result = await catalog.executePackage('hello/greeter', { name: 'Ada', language: 'fr' });
    assert.equal(result.termination, 'exit');
    assert.match(JSON.stringify(result.output), /Ada/);

    const checked = await catalog.verify({ bundle: await catalog.bundle('hello/greeter') });
    assert.ok(checked.checks.every((row) => row.ok));

    const metrics = await hypermesh.getMetrics('catalog.*');
    const total = metrics.find((sample) => sample.name === 'catalog.packages.total');
    assert.equal(total?.value, 2);
    assert.ok(
      metrics.some((sample) => sample.name === 'catalog.operations.publish' && sample.tags['outcome'] === 'ok'),
    );

    for await (const piece of hypermesh.exportState()) backup.push(piece);

    const open = await readableByOthers(join(folder.path, 'home'));
    assert.deepEqual(open, [], 'what lies in the home is its owner’s alone');
  }

  await using restored = await HyperMesh.create({
    home: join(folder.path, 'restored'),
    network: SMALL_NETWORK,
    passphrase: 'only in this test',
  });
  await restored.importState(stream(backup));
  const catalog = await restored.loadExtension('catalog');
  assert.equal((await catalog.resolve('hello/greeter')).id, greeter);
});

/** What boxes are shown, in `vm`, is for their users too. */
async function readableByOthers(home: string): Promise<string[]> {
  const found: string[] = [];
  for (const name of await readdir(home, { recursive: true })) {
    if (name.split(sep)[0] === 'vm') continue;
    // A file of SQLite may go away meanwhile.
    const mode = (await stat(join(home, name)).catch(() => null))?.mode ?? 0;
    if ((mode & 0o077) !== 0) found.push(name);
  }
  return found;
}

async function* stream(pieces: readonly Uint8Array[]): AsyncIterable<Uint8Array> {
  yield* pieces;
}
