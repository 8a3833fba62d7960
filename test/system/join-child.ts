import { join } from 'node:path';
import { HyperMesh } from '../../src/index.ts';
import { testNetwork } from '../../src/testing/network.ts';

/**
 * Opens the homes `ada` and `bob` of a folder in one process and lets bob join by the invite, until somebody kills it.
 * Arguments: folder, invite.
 */
const [folder, invite] = [process.argv[2]!, process.argv[3]!];
const network = testNetwork();

async function open(name: string): Promise<HyperMesh> {
  let opened: HyperMesh | undefined;
  const hypermesh = await HyperMesh.create({
    home: join(folder, name),
    threads: 1,
    networkSide: network.side(name, () => network.identityOf(opened!.node)),
  });
  opened = hypermesh;
  return hypermesh;
}

await using _ada = await open('ada');
await using bob = await open('bob');
process.stdout.write('ready\n');
await bob.node.membership!.join(invite);
process.stdout.write('joined\n');
// Whoever started this process ends it.
setInterval(() => undefined, 60_000);
