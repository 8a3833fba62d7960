import { mkdirSync, readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { hex } from '../../base/bytes.ts';
import type { Digest } from '../../base/digest.ts';
import { storageError } from '../../base/errors.ts';
import type { Json } from '../../base/json.ts';
import type { SeatAsk } from '../../capabilities/membership.ts';
import type { Trust } from '../../capabilities/trust.ts';
import type { SignatureCheck, ValidatorKeys } from '../../wire/attestation.ts';
import { decodeGenesis, type Genesis, genesisDocument } from '../../wire/genesis.ts';
import type { Endorsement } from '../../wire/proof.ts';
import { AccessCourt } from './access-court.ts';
import { Committee, type Ruled } from './committee.ts';
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
  readonly document: Json;
  readonly networkId: Digest;
  readonly identity: string;
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
  readonly court: { readonly quorum: Quorum; readonly law: Genesis };
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
  const { genesis: founded, networkId } = decodeGenesis(JSON.parse(document));
  // Also with expired certificates: a home must open to get new ones.
  const own = await trust.certificates();
  const [identity, node] = (['publisher', 'node'] as const).map(
    (role) => own.find((one) => one.role === role)!.keyId,
  ) as [string, string];
  const validator = await trust.validatorKeys();
  const { clock } = options;
  const votes = new VoteBook(store);
  const first = firstCommittee(founded, networkId);
  const ledger = new Ledger({ raw: store.raw, check }, { terms: termsOf(founded, networkId), first });
  if (ledger.isEmpty) store.transact((raw) => foundLedger(raw, founded, first));
  const sits = ledger.isSeated(validator.key);
  const { epoch, validators } = ledger.latest(sits);
  // The committee of the present epoch in the place of the first one; entered anew when the next one opens.
  const genesis: Genesis = { ...founded, committee: { epoch, validators } };
  const order = sits
    ? new OrderedHome(
        { trust, store, ledger, ask: meeting, caught: (first, second) => votes.witness.caughtHeads(first, second) },
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
  // A court of its own judges by itself in every epoch.
  const lawWith = (law: Genesis): Law => ({
    ...{ genesis: law, networkId },
    committeeOf: (one) => (law === genesis ? ledger.committeeOf(one) : law.committee),
  });
  const seatOf = (law: Genesis, office: LedgerOffice, ruled?: Ruled): OwnSeat => {
    const isSpaceLost = (account: string, root: string) => ledger.isSpaceLost(account, root);
    // A court of its own asks no committee.
    const genuine = law === genesis ? (certificate: Endorsement) => ledger.remember(certificate) : () => undefined;
    const lent = { trust, store, votes, ledger, genuine, isSpaceLost, ruled };
    const committee = new Committee(lent, { clock, ...lawWith(law) });
    return { validator: validator.key, committee, desk: new Desk({ committee, office }) };
  };
  const quorumOf = (law: Genesis, seat: OwnSeat | null) =>
    new Quorum({ trust, votes, orders, own: seat, ask }, { clock, ...lawWith(law), identity, forgotten });
  // Who has just lost its seat goes on with the order for others, and votes and brings nothing.
  const inOffice = validators.some(({ key }) => key === validator.key) ? order : undefined;
  const seat =
    inOffice === undefined
      ? null
      : seatOf(genesis, inOffice, {
          allowed: (operation) => ledger.checkOperation(operation),
          until: (holds) => inOffice.order.until(holds, SETTLE_MS),
        });
  const network = quorumOf(genesis, seat);
  const office = inOffice ?? new RemoteOffice(network);
  const account = new OwnAccount({ trust, store, office }, { networkId, account: identity });
  const law = seat !== null && validators.length === 1 ? genesis : withCourt(genesis, validator);
  const ownCourt = seat !== null && law === genesis ? seat : seatOf(law, office);
  const court = { law, quorum: law === genesis ? network : quorumOf(law, ownCourt) };
  const registry = ownCourt.committee.registry(identity);
  const seed = labelSeed(networkId, identity);
  const { bytes, iterations, registrationOpenings } = genesis.space;
  const directory = commitmentFolder(options.directory, seed);
  const space = new SpaceCommitment(
    { registry: network.registry(registry) },
    { directory, seed, bytes, iterations, registrationOpenings, clock },
  );
  const standing = new OwnStanding((root) => network.standing(root), { directory, clock });
  const standings = new Standings(trust, { clock, genesis, networkId });
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
    ...{ genesis, document: genesisDocument(founded), networkId, identity, epochs },
    ...{ seat, order, ledger, account, office, votes, network, court, space, standing, access, audits },
  };
}

/** The same law with this home as the judge of what it serves to itself. */
function withCourt(genesis: Genesis, validator: ValidatorKeys): Genesis {
  const { epoch } = genesis.committee;
  return { ...genesis, committee: { epoch, validators: [validator] } };
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
