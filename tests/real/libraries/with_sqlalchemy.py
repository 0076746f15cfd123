"""SQLAlchemy: fifteen connections for fifty. Argument: the address of the database."""

from __future__ import annotations

import sys
import threading
from typing import Any

from at_once import PATIENCE, at_once, report
from sqlalchemy import String, create_engine, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

SIZE = 10
engine = create_engine(sys.argv[1], pool_size=SIZE, max_overflow=5, pool_timeout=PATIENCE)
together = threading.Barrier(SIZE)


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "thing"
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    text: Mapped[str] = mapped_column(String(100))


def used_at_once(_n: int) -> bool:
    """At least ten have a connection at a time.

    Not fifteen: QueuePool wakes nobody who waits when it closes a connection that is one too many to keep.
    """
    with engine.connect() as connection:
        together.wait(PATIENCE)
        return connection.execute(select(1)).scalar() == 1


def sessions(n: int) -> list[Any]:
    with Session(engine) as session, session.begin():
        session.add(Item(number=n, text="ö" * n))
    with Session(engine) as session:
        found = session.get(Item, n)
        assert found is not None
        found.text += "!"
        session.flush()
        session.rollback()
        return [found.number, found.text]


Base.metadata.drop_all(engine)
Base.metadata.create_all(engine)
results = {each.__name__: at_once(each) for each in (used_at_once, sessions)}
with engine.connect() as connection:
    counted = connection.execute(select(func.count()).select_from(Item)).scalar()
report(**results, counted=counted, left=engine.pool.checkedout())
engine.dispose()
