import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { HyperMesh } from '../../src/index.ts';
import { SMALL_NETWORK, writePackage } from './support.ts';

/**
 * Publishes and installs without end until somebody kills it. Standard output is the acknowledgement: a line is written only after
 * the call returned, so whatever was printed must be there for ever.
 * Arguments: folder, first number, and the first version whose signatures and proofs are looked at again: older ones were, by an earlier life.
 */
const [folder, first, verified] = [process.argv[2]!, Number(process.argv[3]), Number(process.argv[4])];
const root = join(folder, 'here');

function acknowledge(line: string): void {
  process.stdout.write(`${line}\n`);
}

await using hypermesh = await HyperMesh.create({ home: join(folder, 'home'), network: SMALL_NETWORK, threads: 1 });
const catalog = await hypermesh.loadExtension('catalog');
acknowledge('ready');

// The state after a crash is looked at first, by the code that a user would run.
const here = await catalog.installed(root);
for (const { name, version, path } of here) {
  const says = JSON.parse(await readFile(join(path, 'data.json'), 'utf8')) as { n: number };
  acknowledge(`found ${name}@${version} ${says.n}`);
}
const problems = here.length === 0 ? [] : await hypermesh.node.assets.checkInstallation(root);
for (const { path, problem } of problems) acknowledge(`damaged ${path}: ${problem}`);
for (const record of await hypermesh.node.assets.versions('crash/test')) {
  if (Number(record.version!.split('.')[2]) >= verified) await catalog.verify({ ref: `crash/test@${record.version}` });
  acknowledge(`published ${record.version}`);
}
acknowledge('checked');

for (let n = first; ; n++) {
  const version = `1.0.${n}`;
  const manifest = { name: 'crash/test', version, type: 'library' };
  const files = { 'data.json': JSON.stringify({ n }), 'filler.txt': `${n} `.repeat(20_000) };
  await catalog.publishPackage(
    await catalog.signPackage(
      await hypermesh.stageFolder(await writePackage(join(folder, `package-${n}`), manifest, files)),
    ),
  );
  acknowledge(`publish ${version}`);
  await catalog.install([`crash/test@${version}`], { root });
  acknowledge(`install ${version}`);
  if (n % 5 === 0) await hypermesh.node.assets.collect();
}
