"""What gateways remember together: tables in one SQLite file or one PostgreSQL database, whatever their number."""
