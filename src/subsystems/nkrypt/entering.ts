import { mkdirSync, readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { hex } from '../../base/bytes.ts';
import { type Digest, digestOf } from '../../base/digest.ts';
import { HyperMeshError, storageError } from '../../base/errors.ts';
import { canonicalJson, type Json } from '../../base/json.ts';
import type { SeatAsk } from '../../capabilities/membership.ts';
import type { Trust } from '../../capabilities/trust.ts';
import type { SignatureCheck, ValidatorKeys } from '../../wire/attestation.ts';
import type { Committee } from '../../wire/epoch.ts';
import { decodeGenesis, type Genesis, genesisDocument } from '../../wire/genesis.ts';
import type { Endorsement } from '../../wire/proof.ts';
import { AccessCourt } from './access-court.ts';
import { type Ruled, Committee as Seated } from './committee.ts';
import { Desk } from './desk.ts';
import type { Law } from './epoch-law.ts';
import { Epochs } from './epochs.ts';
import { termsOf } from './ledger/law.ts';
import { firstCommittee, foundLedger, Ledger } from './ledger/ledger.ts';
import type { NKryptOptions } from './nkrypt.ts';
import type { OrderLent } from './order/order.ts';
import { OrderedHome } from './ordered.ts';
import { OwnOrders } from './orders.ts';
import { type LedgerOffice, OwnAccount } from './own-account.ts';
import { type OwnSeat, Quorum } from './quorum.ts';
import { RemoteOffice } from './remote-office.ts';
import { SpaceCommitment } from './space.ts';
import { type AuditsLent, SpaceAudits } from './space-audits.ts';
import { labelSeed } from './space-graph.ts';
import { OwnStanding, Standings } from './standing.ts';
import type { Store } from './store.ts';
import { VoteBook } from './votes.ts';

/** What this subsystem needs of the keys of its home. */
export type LentTrust = Pick<
  Trust,
  | 'identity'
  | 'sign'
  | 'anchor'
  | 'certificates'
  | 'attest'
  | 'attestFast'
  | 'attested'
  | 'signedBy'
  | 'publicKeys'
  | 'validatorKeys'
>;

export interface Lent {
  readonly trust: LentTrust;
  /** Judges signatures at once: what the order says must not wait between its entries. */
  readonly check: SignatureCheck;
}

/** How long a validator waits for a part of the order that the others have. */
const SETTLE_MS = 3_000;

/** What depends on the network and identity that the store is about. */
export interface Membership {
  readonly genesis: Genesis;
  /** In office, as far as this home knows. */
  readonly committee: Committee;
  readonly document: Json;
  readonly networkId: Digest;
  readonly identity: string;
  /** Key id of this home's validator, with or without a seat. */
  readonly validator: string;
  /** This home's seat in the committee of the network, and its part in the order. */
  readonly seat: OwnSeat | null;
  readonly order: OrderedHome | undefined;
  /** All that the order says; of a home without a seat only what the genesis says. */
  readonly ledger: Ledger;
  /** How the next committee follows; undefined in a home without a seat. */
  readonly epochs: Epochs | undefined;
  readonly account: OwnAccount;
  readonly office: LedgerOffice;
  readonly votes: VoteBook;
  /** The committee of the network, and this home as the court of what it serves to itself. */
  readonly network: Quorum;
  readonly court: { readonly quorum: Quorum; readonly law: Law };
  readonly space: SpaceCommitment;
  readonly standing: OwnStanding;
  readonly access: AccessCourt;
  /** Of other members' commitments; null in a home without a seat, and where nobody has to commit space. */
  readonly audits: SpaceAudits | null;
}

/** Puts together what the store says; entered anew when the network or its committee is another one. */
export async function enter(
  { trust, check }: Lent,
  store: Store,
  options: NKryptOptions,
  ask: SeatAsk,
  audited: Pick<AuditsLent, 'ask' | 'lost'>,
  meeting: OrderLent['ask'],
  turned: () => void,
): Promise<Membership> {
  const { document } = store.raw.prepare('SELECT document FROM genesis').get() as { document: string };
  const { genesis, networkId } = decodeGenesis(JSON.parse(document));
  // Also with expired certificates: a home must open to get new ones.
  const certificates = await trust.certificates();
  const [identity, node] = (['publisher', 'node'] as const).map(
    (role) => certificates.find((one) => one.role === role)!.keyId,
  ) as [string, string];
  const validator = await trust.validatorKeys();
  const { clock } = options;
  const votes = new VoteBook(store);
  const first = firstCommittee(genesis, networkId);
  const ledger = new Ledger({ raw: store.raw, check }, { terms: termsOf(genesis, networkId), first });
  if (ledger.isEmpty) store.transact((raw) => foundLedger(raw, genesis, first));
  const sits = ledger.isSeated(validator.key);
  // Entered anew when the next one opens.
  const committee = ledger.latest(validator.key);
  const { validators } = committee;
  const before = ledger.before(committee);
  const order = sits
    ? new OrderedHome(
        { trust, store, ledger, ask: meeting, caught: votes.witness.caughtHeads },
        { clock, networkId, self: validator.key, etcd: options.etcd },
      )
    : undefined;
  const epochs =
    order === undefined
      ? undefined
      : new Epochs(
          {
            ...{ store, ledger, trust, votes },
            submit: (entry, given) => order.submit(entry, given),
            exchange: (seat, known) => ask(seat, 'network/epochs', known, { replyBytesMax: 8 * 2 ** 20 }),
          },
          { networkId, self: validator.key },
        );
  // In a transaction that may still be undone: looked at when it is over.
  ledger.onTurn = () => setImmediate(turned);
  const orders = new OwnOrders({ trust, store }, { clock, networkId, identity });
  const alone = ownCourt(committee, networkId, validator);
  const lawWith = (judges: Committee): Law => ({
    ...{ genesis, networkId, committee: judges },
    // What a home judged itself before it was the whole committee.
    committeeOf: (one) => (judges.validators.length === 1 && one === alone.digest ? alone : ledger.committeeOf(one)),
  });
  const seatOf = (judges: Committee, office: LedgerOffice, ruled?: Ruled): OwnSeat => {
    const isSpaceLost = (account: string, root: string) => ledger.isSpaceLost(account, root);
    // A court of its own asks no committee.
    const genuine = judges === alone ? () => undefined : (certificate: Endorsement) => ledger.remember(certificate);
    const lent = { trust, store, votes, ledger, genuine, isSpaceLost, ruled };
    const seated = new Seated(lent, { clock, ...lawWith(judges) });
    return { validator: validator.key, committee: seated, desk: new Desk({ committee: seated, office }) };
  };
  const quorumOf = (judges: Committee, seat: OwnSeat | null) =>
    new Quorum({ trust, votes, orders, own: seat, ask }, { clock, ...lawWith(judges), identity, forgotten });
  // Who has just lost its seat goes on with the order for others, and votes and brings nothing.
  const inOffice = validators.some(({ key }) => key === validator.key) ? order : undefined;
  const seat =
    inOffice === undefined
      ? null
      : seatOf(committee, inOffice, {
          allowed: (operation) => {
            checkInOffice(ledger, committee);
            ledger.checkOperation(operation);
          },
          until: (holds) => inOffice.order.until(holds, SETTLE_MS),
        });
  const network = quorumOf(committee, seat);
  const office = inOffice ?? new RemoteOffice(network);
  const account = new OwnAccount({ trust, store, office }, { networkId, account: identity });
  const isAlone = seat !== null && validators.length === 1;
  const judges = isAlone ? committee : alone;
  const own = isAlone ? seat : seatOf(judges, office);
  const court = { law: lawWith(judges), quorum: isAlone ? network : quorumOf(judges, own) };
  const registry = own.committee.registry(identity);
  const seed = labelSeed(networkId, identity);
  const { bytes, iterations, registrationOpenings } = genesis.space;
  const directory = commitmentFolder(options.directory, seed);
  const space = new SpaceCommitment(
    { registry: network.registry(registry) },
    { directory, seed, bytes, iterations, registrationOpenings, clock },
  );
  const standing = new OwnStanding((root) => network.standing(root), { directory, clock, committee, before });
  const standings = new Standings(trust, { clock, genesis, networkId, committee, before });
  const access = new AccessCourt(
    { standing: (...presented) => standings.check(...presented) },
    { clock, genesis, networkId, node },
  );
  function forgotten(): void {
    registry.forget();
    space.registerAgain();
  }
  const asked = genesis.requirements.publish.space ?? genesis.requirements.default.space;
  const audits =
    seat !== null && asked !== null
      ? new SpaceAudits(
          { ...audited, registered: () => seat.committee.registrations().filter((one) => one.identity !== identity) },
          { directory: options.directory, clock, terms: { networkId, bytes, ...asked } },
        )
      : null;
  // In the background: who needs it waits for it and gets the error, if there is one.
  space.ready().catch(() => undefined);
  return {
    ...{ genesis, document: genesisDocument(genesis), networkId, committee, identity, epochs },
    ...{ validator: validator.key, seat, order, ledger, account, office, votes },
    ...{ network, court, space, standing, access, audits },
  };
}

/** This home as the judge of what it serves to itself: what it says as that counts for nothing in the committee of the network, where it has a seat. */
function ownCourt({ epoch }: Committee, networkId: Digest, validator: ValidatorKeys): Committee {
  return { epoch, validators: [validator], digest: digestOf(canonicalJson({ court: validator.key, networkId })) };
}

/** Nobody votes before the order says that his committee sits, with everything that the one before handed over. Errors: `epoch-over`. */
function checkInOffice(ledger: Ledger, { epoch, digest }: Committee): void {
  if (ledger.committee().digest === digest) return;
  throw new HyperMeshError('epoch-over', `The committee of epoch ${epoch} is not in office on this machine.`, {
    hint: 'It follows in a moment; run the command again.',
  });
}

/** Named by the seed, so that labels of another identity or network are never taken for ours; those are removed. */
function commitmentFolder(directory: string, seed: Uint8Array): string {
  const parent = join(directory, 'space');
  const own = hex(seed).slice(0, 32);
  try {
    mkdirSync(parent, { recursive: true, mode: 0o700 });
    for (const name of readdirSync(parent)) {
      if (name !== own) rmSync(join(parent, name), { recursive: true, force: true });
    }
  } catch (error) {
    throw storageError(error, `opening ${parent}`);
  }
  return join(parent, own);
}
