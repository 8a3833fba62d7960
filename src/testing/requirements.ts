import { OPERATION_KINDS, type OperationKind, type Requirements } from '../wire/proof.ts';

/** A table of requirements with a row for each kind of operation. */
export function requirementsOf(row: (kind: OperationKind) => Requirements): Record<OperationKind, Requirements> {
  // The cast: it has every kind.
  return Object.fromEntries(OPERATION_KINDS.map((kind) => [kind, row(kind)])) as Record<OperationKind, Requirements>;
}
